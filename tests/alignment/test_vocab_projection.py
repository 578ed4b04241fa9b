import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.alignment.edit_distance import nearest_tokens
from profuser.alignment.first_token import first_tokens
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.alignment.vocab_projection import ProjectionRule, VocabProjection

NAMES = ["byte_level", "llama_like", "metaspace", "unigram"]


@pytest.fixture(scope="module")
def tables(families) -> dict[str, TokenBytes]:
    return {name: TokenBytes.from_tokenizer(tokenizer, 512) for name, tokenizer in families.items()}


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_every_token_is_mapped_to_a_prefix_of_its_bytes(tables, source, target):
    projection = VocabProjection.build(tables[source], tables[target])
    for index in range(512):
        data, goal = tables[source][index], int(projection.whole[index])
        if data is None:
            continue
        found = tables[target][goal]
        assert found is not None
        assert data.startswith(found)
        exact = projection.rules[index] == ProjectionRule.EXACT
        assert exact == (data in tables[target].id_of) == (found == data)


@pytest.mark.parametrize("name", NAMES)
def test_the_projection_of_a_tokenizer_onto_itself_is_the_identity(families, name):
    smaller, larger = (TokenBytes.from_tokenizer(families[name], size) for size in (512, 640))
    used = np.flatnonzero(smaller.roles != Role.UNUSED)
    for source, target in ((smaller, larger), (larger, smaller), (smaller, smaller)):
        np.testing.assert_array_equal(VocabProjection.build(source, target).whole[used], used)


def test_the_first_token_is_the_tokenizers_own(families, tables):
    words = [" getting", "getting", " reading", " 1984", "1984", " the library", "\t\t", "    return"]
    for name, tokenizer in families.items():
        found = first_tokens(tables[name], [word.encode() for word in words])
        for word, index in zip(words, found.tolist(), strict=True):
            # A token before the word shows how it is tokenized in the middle of a text.
            before = tokenizer.encode(",", add_special_tokens=False)
            ids = tokenizer.encode("," + word, add_special_tokens=False)
            if ids[: len(before)] == before:
                assert ids[len(before)] == index, (name, word)


def test_partial_characters_are_mapped_to_the_longest_token_that_fits():
    target = TokenBytes.from_table([b"\xe4", b"\xe4\xbd", b" ", "\u4f60".encode()])
    found = first_tokens(target, [b"\xe4\xbd\xbf", b"\xe4\xbd\xa0\xe4", b" \xe4", b"x", b"\xe4"])
    assert found.tolist() == [1, 3, 2, -1, 0]


def test_the_text_of_a_special_token_is_text(tables):
    for tokens in tables.values():
        found = tokens[int(first_tokens(tokens, [b"</s>"])[0])]
        assert found is not None
        assert b"</s>".startswith(found)


def test_specials_are_mapped_by_role_or_to_the_tail():
    source = TokenBytes.from_table([b"a", None, None, None], {1: Role.BOS, 2: Role.OTHER}, end_ids=[3])
    target = TokenBytes.from_table([None, b"a", None, None], {3: Role.BOS}, end_ids=[2, 0])
    projection = VocabProjection.build(source, target)
    assert projection.whole.tolist() == [1, -1, -1, 2]
    assert projection.rules.tolist() == [
        ProjectionRule.EXACT,
        ProjectionRule.TAIL,
        ProjectionRule.TAIL,
        ProjectionRule.ROLE,
    ]
    assert projection.counts() == {"tail": 2, "exact": 1, "first_token": 0, "min_edit": 0, "role": 1}
    assert VocabProjection.build(source, target, specials=False).whole.tolist() == [1, -1, -1, -1]


def test_remainders_and_leading_spaces_are_mapped():
    source = TokenBytes.from_table([b" getting", b"get", b" ", b" \n", None], end_ids=[4])
    target = TokenBytes.from_table([b"get", b" get", b"ting", b"t", b"\n", b" ", None], end_ids=[6])
    projection = VocabProjection.build(source, target)
    rests = projection.rest(np.array([0, 0, 0, 0, 1, 4]), np.array([0, 1, 4, 8, 2, 0]))
    assert rests.tolist() == [1, 0, 2, -1, 3, 6]
    assert projection.without_space(np.arange(5)).tolist() == [0, 0, -1, 4, 6]
    assert projection.with_space(np.arange(5)).tolist() == [5, 1, 5, 5, 6]


def test_without_a_fallback_only_the_same_bytes_are_mapped():
    source = TokenBytes.from_table([b"ab", b"abc"])
    projection = VocabProjection.build(source, TokenBytes.from_table([b"a", b"ab"]), fallback="tail")
    assert projection.whole.tolist() == [1, -1]


def test_min_edit_maps_to_the_nearest_token():
    source = TokenBytes.from_table([b"getting", b"1984", b"ab"])
    target = TokenBytes.from_table([b"setting", b"get", b"19", b"ab", None], end_ids=[4])
    projection = VocabProjection.build(source, target, fallback="min_edit")
    assert projection.whole.tolist() == [0, 2, 3]
    assert projection.rules.tolist() == [ProjectionRule.MIN_EDIT, ProjectionRule.MIN_EDIT, ProjectionRule.EXACT]


def levenshtein(a: bytes, b: bytes) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=6), st.binary(min_size=1, max_size=4))
def test_nearest_token_agrees_with_the_definition(table, text):
    distances = [levenshtein(text, data) for data in table]
    assert nearest_tokens(TokenBytes.from_table(table), [text]).tolist() == [distances.index(min(distances))]


def test_nearest_token_of_known_words():
    table = TokenBytes.from_table([None, b"sitting", b"kitten ", b"       ", b"\xff\x00"], end_ids=[0])
    assert nearest_tokens(table, [b"kitten", b"sittin", b"\xff\x01"]).tolist() == [2, 1, 4]
    assert nearest_tokens(TokenBytes.from_table([None], end_ids=[0]), [b"a"]).tolist() == [-1]
