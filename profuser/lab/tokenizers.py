"""Trains three kinds of tokenizers: SentencePiece-style BPE, byte-level BPE, and Unigram, with matching chat templates.

All three can encode any text: a character that is in no piece falls back to bytes. Encoding and decoding go through one
`tokenizer.json`, saved under the generic class, so that `AutoTokenizer` loads exactly what was built.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

METASPACE = "\u2581"
BYTES = [f"<0x{value:02X}>" for value in range(256)]
FRAME_SHARE = 0.2
"""Share of template words added to the training texts, so that these become pieces too."""

VICUNA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + '\\n' }}"
    "{% else %}{{ m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '### Response:\\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
    "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TokenizerKind:
    """Trainer of a kind of tokenizer, with default vocabulary sizes (in pieces, specials and bytes included)."""

    make: Callable[[Sequence[str], int], PreTrainedTokenizerFast]
    lab_vocab_size: int
    corpus_vocab_size: int


def sentencepiece_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains BPE over `Metaspace` words with byte fallback and single digits, as in Llama-2, with Vicuna's chat template.

    As in Llama-2 a leading space belongs to the first word: " a" and "a" have the same ids.

    Args:
        texts: to train on.
        vocab_size: pieces in all; 3 specials, 256 bytes, the rest learned.
    """
    specials = ["<unk>", "<s>", "</s>"]
    pieces = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True), _marks()]
    )
    learner = Tokenizer(models.BPE())
    # A newline is encoded as its byte, so it must not enter the pieces.
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "removed"), pieces])
    size = vocab_size - len(specials) - len(BYTES)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[], limit_alphabet=max(size // 3, 1), show_progress=False
    )
    learner.train_from_iterator([*texts, *_frames("\nUSER:\nASSISTANT:", texts)], trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab = {piece: index for index, piece in enumerate([*specials, *BYTES, *_by_id(learned["vocab"])])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = _byte_fallback_decoder(strip_first=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    _add_specials(tokenizer, specials)
    return _fast(tokenizer, VICUNA, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")


def byte_level_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE as in GPT-NeoX, with ChatML's specials; `<|endoftext|>` pads, `<|im_end|>` ends.

    Args:
        texts: to train on.
        vocab_size: pieces in all; 3 specials, 256 bytes, the rest learned.
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_special(text) for text in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *_frames("user\nassistant\n", texts)], trainer)
    return _fast(
        tokenizer, CHATML, unk_token=specials[0], bos_token=specials[0], eos_token=specials[2], pad_token=specials[0]
    )


def unigram(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains Unigram over `Metaspace` words with byte fallback, isolated line breaks, and Alpaca's chat template.

    Args:
        texts: to train on.
        vocab_size: pieces in all; 3 specials, 256 bytes, the rest learned.
    """
    specials = ["<pad>", "</s>", "<unk>"]
    # Line breaks are isolated: else "Response:\nThe" would be one word and the answer's first token would reach into the prompt.
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never"), _marks()]
    )
    size = vocab_size - len(specials) - len(BYTES)
    learned = _weighed_pieces([*texts, *_frames("### Instruction:\n### Response:\n", texts)], words, size)
    # Byte pieces must score below even six single characters, or the text "<0x41>" would be read as the byte 0x41.
    floor = 10.0 * min(score for _, score in learned)
    scored = [*((text, 0.0) for text in specials), *((text, floor) for text in BYTES), *learned]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=specials.index("<unk>"), byte_fallback=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = _byte_fallback_decoder(strip_first=False)
    _add_specials(tokenizer, specials)
    return _fast(tokenizer, ALPACA, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


TOKENIZERS = {
    "llama": TokenizerKind(sentencepiece_bpe, lab_vocab_size=760, corpus_vocab_size=2600),
    "mpt": TokenizerKind(byte_level_bpe, lab_vocab_size=1000, corpus_vocab_size=3000),
    "neox": TokenizerKind(unigram, lab_vocab_size=880, corpus_vocab_size=3400),
}
"""Tokenizer of each source."""


def _by_id(vocab: dict[str, int]) -> list[str]:
    return sorted(vocab, key=vocab.__getitem__)


def _frames(frame: str, texts: Sequence[str]) -> list[str]:
    return [frame] * (1 + int(FRAME_SHARE * len(texts)))


def _weighed_pieces(texts: Sequence[str], words: pre_tokenizers.PreTokenizer, size: int) -> list[tuple[str, float]]:
    """Returns the pieces that BPE finds, each with the log of its share of all substrings, as a Unigram vocabulary.

    The Unigram trainer of `tokenizers` counts substrings over distinct words, so that in a small corpus a frequent short
    word ("of") would not become a piece.
    """
    counts = Counter(word for text in texts for word, _ in words.pre_tokenize_str(text) if word != "\n")
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        limit_alphabet=max(size // 3, 1),
        show_progress=False,
    )
    learner.pre_tokenizer = words
    learner.train_from_iterator((text.replace("\n", " ") for text in texts), trainer)
    pieces = _by_id(learner.get_vocab())
    longest = max(map(len, pieces))
    occurrences = Counter(dict.fromkeys(pieces, 1))
    for word, count in counts.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                if word[start:end] in occurrences:
                    occurrences[word[start:end]] += count
    total = sum(occurrences.values())
    return [(piece, math.log(occurrences[piece] / total)) for piece in pieces]


def _marks() -> pre_tokenizers.PreTokenizer:
    """Splits punctuation from words, as SentencePiece's split by script does."""
    return pre_tokenizers.Split(Regex("[.,:;?!]"), "isolated")


def _special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _add_specials(tokenizer: Tokenizer, specials: Sequence[str]) -> None:
    tokenizer.add_special_tokens([_special(text) for text in specials])


def _byte_fallback_decoder(strip_first: bool) -> decoders.Decoder:
    steps = [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip_first else steps)


def _fast(tokenizer: Tokenizer, chat_template: str, **specials: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="right",
        **specials,
    )
    fast.chat_template = chat_template
    return fast
