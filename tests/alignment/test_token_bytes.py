import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from profuser.alignment.spans import byte_spans
from profuser.alignment.splits import token_begins
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.errors import AlignmentError
from profuser.signals.ragged import Ragged


@pytest.mark.parametrize("name", ["byte_level", "llama_like", "metaspace", "unigram"])
def test_every_byte_has_a_token_and_specials_have_roles(families, name):
    tokens = TokenBytes.from_tokenizer(families[name], 512)
    assert set(tokens.id_of) >= {bytes([byte]) for byte in range(256)}
    assert [tokens.roles[index] for index in range(3)] == [Role.UNK, Role.BOS, Role.END]
    assert tokens[0] is tokens[1] is tokens[2] is None
    assert tokens.end_ids == (2,)
    assert (tokens.roles[len(families[name]) :] == Role.UNUSED).all()


def test_bytes_match_the_tokenizers_decoding(families):
    for tokenizer in families.values():
        tokens = TokenBytes.from_tokenizer(tokenizer, 512)
        added = tokenizer.get_added_vocab().values()  # `tokenizers` decodes these wrongly if they are not ASCII
        for index in set(np.flatnonzero(tokens.lengths).tolist()) - set(added):
            piece = b"a" + (tokens[index] or b"")
            lead = tokenizer.convert_tokens_to_ids("a")
            assert tokenizer.backend_tokenizer.decode([lead, index]) == piece.decode(errors="replace")


def test_added_tokens_have_the_bytes_of_their_text(byte_level):
    tokens = TokenBytes.from_tokenizer(byte_level, 512)
    assert tokens[byte_level.convert_tokens_to_ids("  ")] == b"  "
    assert tokens[byte_level.convert_tokens_to_ids("<tool>\u00e9")] == "<tool>\u00e9".encode()


def test_an_ordinary_piece_is_preferred_to_a_byte_piece(llama_like):
    tokens = TokenBytes.from_tokenizer(llama_like, 512)
    assert tokens.id_of[b"a"] == llama_like.convert_tokens_to_ids("a")
    assert tokens[llama_like.convert_tokens_to_ids("<0x61>")] == b"a"
    assert tokens.id_of["\u4f60".encode()[:1]] == llama_like.convert_tokens_to_ids("<0xE4>")


def test_end_ids_of_the_caller_come_first(byte_level):
    tokens = TokenBytes.from_tokenizer(byte_level, 512, end_ids=[5])
    assert tokens.end_ids == (5, 2)
    assert tokens[5] is None
    assert tokens.roles[5] == Role.END


def test_the_digest_distinguishes_tables(byte_level):
    tokens = TokenBytes.from_tokenizer(byte_level, 512)
    assert tokens.digest == TokenBytes.from_tokenizer(byte_level, 512).digest
    assert tokens.digest != TokenBytes.from_tokenizer(byte_level, 513).digest
    assert tokens.digest != TokenBytes.from_tokenizer(byte_level, 512, end_ids=[5]).digest
    assert TokenBytes.from_table([b"ab", b"c"]).digest != TokenBytes.from_table([b"a", b"bc"]).digest


def test_a_plain_tokenizer_spells_its_pieces():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, " ": 1, "a ": 2}, merges=[("a", " ")]))
    assert [TokenBytes.from_tokenizer(tokenizer, 4)[index] for index in range(4)] == [b"a", b" ", b"a ", None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": normalizers.Lowercase()}, "Lowercase"),
        ({"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])}, "NFKC"),
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "Whitespace"),
        ({"pre_tokenizer": pre_tokenizers.Split(" ", "removed")}, "Split"),
        ({"model": models.WordPiece({"a": 0}, unk_token="a")}, "WordPiece"),
        ({"model": models.BPE(vocab={"a</w>": 0}, merges=[], end_of_word_suffix="</w>")}, "end_of_word_suffix"),
    ],
)
def test_a_component_that_bytes_cannot_express_is_refused_by_name(change, reason):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in change.items():
        setattr(tokenizer, name, part)
    with pytest.raises(AlignmentError, match=reason):
        TokenBytes.from_tokenizer(tokenizer, 4)


def test_wrong_sizes_and_objects_are_refused(byte_level):
    with pytest.raises(
        AlignmentError, match=r"ends a turn has id 511, outside the vocabulary: the logits have only 300"
    ):
        TokenBytes.from_tokenizer(byte_level, 300, end_ids=[511])
    with pytest.raises(AlignmentError, match="outside the vocabulary"):
        TokenBytes.from_tokenizer(byte_level, 512, end_ids=[512])
    with pytest.raises(AlignmentError, match="fast tokenizer"):
        TokenBytes.from_tokenizer(object(), 512)


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_beyond_the_logits_is_ignored(special, byte_level):
    tokenizer = copy.deepcopy(byte_level)
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken("[PAD]", special=special)])
    if special:
        tokenizer.pad_token = "[PAD]"
    assert len(tokenizer) == size + 1
    tokens, before = (TokenBytes.from_tokenizer(each, size) for each in (tokenizer, byte_level))
    assert (tokens.vocab_size, tokens.num_beyond, before.num_beyond) == (size, 1, 0)
    assert tokens.digest == before.digest
    text = b"a [PAD] b"
    assert tokens.spell(np.array(tokens.bare.encode(text.decode(), add_special_tokens=False).ids)) == text


def test_a_tokenizer_much_wider_than_the_logits_maps_to_what_is_within_them(byte_level, llama_like):
    wide, size = byte_level, len(byte_level) - 40
    tokens = TokenBytes.from_tokenizer(wide, size)
    assert tokens.num_beyond == 40
    other = TokenBytes.from_tokenizer(llama_like, 512)
    for source, target in ((other, tokens), (tokens, other)):
        counts = VocabProjection.build(source, target).counts()
        assert counts["exact"] > 256
    begins = token_begins(tokens, [wide.convert_tokens_to_string([wide.convert_ids_to_tokens(size + 1)]).encode()])
    assert begins[0].all()
    ids = Ragged.from_rows([[size + 1]], dtype=np.int64)
    assert "outside the vocabulary" in byte_spans(tokens, ids, [b"x"]).refused[0]
