"""Fixtures: small tokenizers of each family, trained here and wrapped as transformers loads them."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Now getting 1984 books from the library, getting ready for 2001.",
    "The answer is forty-two. The question, however, is what the answer is for.",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u4f60\u597d\u5417\uff1f",
    "na\u00efve caf\u00e9 cooperation; Stra\u00dfe, gro\u00df und klein",
    "def add(a, b):\n\treturn a + b\n\n    # four spaces  and two",
    "reading, writing, getting, setting, netting; reader, writer, getter, setter",
] * 4
SPACE = "\u2581"
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE_DECODER = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def without_byte_specials(tokenizer: Tokenizer) -> Tokenizer:
    """Turns byte pieces, which are trained as specials to get ids, into ordinary pieces of the model."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(spec))


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("<tool>\u00e9")])
    return wrap(tokenizer)


def sentencepiece_bpe(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIALS + BYTE_PIECES, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?={SPACE})|\n|\t"), "isolated")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    tokenizer.decoder = SPACE_DECODER
    return without_byte_specials(tokenizer)


@pytest.fixture(scope="session")
def llama_like() -> PreTrainedTokenizerFast:
    """Legacy SentencePiece: a normalizer writes the spaces, no pre-tokenizer; covers ASCII, the rest by byte fallback."""
    tokenizer = sentencepiece_bpe(400)
    spec = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    return wrap(Tokenizer.from_str(json.dumps(spec)))


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_bpe(440)
    spec = json.loads(tokenizer.to_str()) | {"normalizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return wrap(tokenizer)


@pytest.fixture(scope="session")
def unigram() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=150, show_progress=False))
    pieces = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["vocab"]]
    specials = [(piece, 0.0) for piece in SPECIALS] + [(piece, -20.0) for piece in BYTE_PIECES]
    tokenizer = Tokenizer(models.Unigram(specials + pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = SPACE_DECODER
    tokenizer.add_special_tokens(SPECIALS)
    return wrap(tokenizer)


@pytest.fixture(scope="session")
def families(byte_level, llama_like, metaspace, unigram) -> dict[str, PreTrainedTokenizerFast]:
    return {"byte_level": byte_level, "llama_like": llama_like, "metaspace": metaspace, "unigram": unigram}
