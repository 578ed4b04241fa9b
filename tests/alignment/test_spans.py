import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profuser.alignment.spans import boundaries, byte_spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.errors import AlignmentError
from profuser.signals.ragged import Ragged
from tests.alignment.conftest import SPACE

# Text that literally contains the SentencePiece space, or a special token, is lossy by design and refused.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters=[SPACE]), max_size=20).filter(
    lambda text: "s>" not in text
)
AWKWARD = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family",
    "\u4f60\u597d \u4e16\u754c",
    "e\u0301 u\u0308 \u0928\u093f",
    "\ttab\t\ttabs",
    "  two   three    ",
    "\r\n\r\n",
    "",
    " ",
    "a",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "zero\u200bwidth\u200d \u2066isolate\u2069 \ufeff",
    "\x00\x01\x07 control \x1b[0m\x7f",
    "Donaudampfschifffahrtsgesellschaft" * 40,
    "x" * 3000,
    "\ufb01 ligature \u00bd \u2460 \uff21\uff22",
    "    def f():\n        return 1\n\n\n\n",
    "1984 12345 3.14 1,000",
    "\ud55c\uad6d\uc5b4 \U0001f1e9\U0001f1ea\U0001f3f3\ufe0f\u200d\U0001f308",
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_tokens_spell_any_text(families, texts):
    for tokenizer in families.values():
        tokens = TokenBytes.from_tokenizer(tokenizer, 512)
        check_batch(tokenizer, tokens, texts)


def test_tokens_spell_awkward_text(families):
    for tokenizer in families.values():
        check_batch(tokenizer, TokenBytes.from_tokenizer(tokenizer, 512), AWKWARD)


def check_batch(tokenizer, tokens, texts):
    ids = [[*tokenizer.encode(text, add_special_tokens=False), 2] for text in texts]
    spans = byte_spans(tokens, Ragged.from_rows(ids), [text.encode() for text in texts])
    assert not spans.refused
    offset = 0
    for row, text in zip(ids, texts, strict=True):
        stream, lead = text.encode(), -int(spans.starts[offset])
        assert lead in (0, 1)
        for place in range(offset, offset + len(row) - 1):
            piece = (b" " * lead + stream)[spans.starts[place] + lead : spans.ends[place] + lead]
            assert piece == tokens[row[place - offset]]
        last = offset + len(row) - 1
        assert (spans.starts[last], spans.ends[last]) == (len(stream), len(stream))
        offset += len(row)


def test_an_answer_cut_inside_a_character_still_has_spans(llama_like):
    tokens = TokenBytes.from_tokenizer(llama_like, 512)
    ids = llama_like.encode("\u4f60", add_special_tokens=False)
    response = "\u4f60".encode()[:2]
    assert boundaries(tokens, ids[:-1], response).tolist() == [-1, 0, 1, 2]


def test_a_leading_space_begins_before_the_response():
    tokens = TokenBytes.from_table([b" Now", b"Now", b" then", b" "], end_ids=[])
    assert boundaries(tokens, [0, 2], b"Now then").tolist() == [-1, 3, 8]
    assert boundaries(tokens, [1, 2], b"Now then").tolist() == [0, 3, 8]
    assert boundaries(tokens, [3, 1], b"Now").tolist() == [-1, 0, 3]
    assert boundaries(tokens, [0], b" Now").tolist() == [0, 4]
    assert boundaries(tokens, [], b"").tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "response", "reason"),
    [
        ([0, 2], b"Now when", "differ at byte 4"),
        ([1], b"Now then", "differ at byte 3"),
        ([1, 2], b"Now", "differ at byte 3"),
        ([3, 0], b"Now", "differ at byte"),
        ([1, 4, 1], b"NowNow", "not a final end of turn"),
        ([1, 5], b"Now", "token id 5 at position 1 has no bytes"),
        ([1, 6], b"Now", "outside the vocabulary"),
        ([-1], b"Now", "outside the vocabulary"),
    ],
)
def test_tokens_that_do_not_spell_the_response_are_refused(ids, response, reason):
    tokens = TokenBytes.from_table([b" Now", b"Now", b" then", b" ", None, None], end_ids=[4])
    with pytest.raises(AlignmentError, match=reason):
        boundaries(tokens, ids, response)


def test_a_refused_row_does_not_affect_its_neighbours():
    tokens = TokenBytes.from_table([b"a", b"b"])
    spans = byte_spans(tokens, Ragged.from_rows([[0, 1], [1], [1, 0]]), [b"ab", b"a", b"ba"])
    assert list(spans.refused) == [1]
    np.testing.assert_array_equal(spans.starts[[0, 1, 3, 4]], [0, 1, 0, 1])
