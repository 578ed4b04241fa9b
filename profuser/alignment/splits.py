"""Determines whether the target's tokenizer puts a token boundary inside given bytes.

Inside a source token the target has already emitted tokens that end at the consumed bytes. A continuation that the target would not
split there contradicts them.

Legend: n positions, C candidates per position, P pairs of source tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int8, Integer

from profuser.alignment.first_token import NOT_MAPPED, longest_match
from profuser.alignment.source_signals import share_prefix
from profuser.alignment.token_bytes import TokenBytes

UNKNOWN = -1


class TargetSplits:
    """Boundaries of the target's tokens inside source tokens, and between two of them.

    The bytes are tokenized without their context. A target token that began before them, or that would extend past them, can
    move the boundary: there the answer is an approximation. Bytes that are not UTF-8 (partial characters), or that the target's
    tokenizer does not spell, count as split everywhere. With a table without a tokenizer, bytes are split greedily into the
    longest tokens.
    """

    def __init__(self, source: TokenBytes, target: TokenBytes) -> None:
        self.source, self.target = source, target
        self._begins = np.full(len(source.blob), UNKNOWN, dtype=np.int8)
        """Whether a target token begins at each byte of the source's tokens; filled on demand, one source token at a time."""
        self._pairs, self._pair_splits = np.array([-1]), np.array([True])
        """Keys of the pairs of source tokens seen so far, ascending, and whether the target splits between the two."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies the table that is filled on demand: one received from another process may be read-only."""
        self.__dict__ |= state | {"_begins": state["_begins"].copy()}

    def fitting(
        self,
        candidates: Integer[np.ndarray, "n C"],
        actual: Integer[np.ndarray, "n"],
        consumed: Int[np.ndarray, "n"],
    ) -> Bool[np.ndarray, "n C"]:
        """Returns whether candidates begin with the realised token's first `consumed` bytes and the target would split them there.

        If the target would not split the realised token, tokenized without context, then the preceding text matters, and no
        candidate is dropped for its split.
        """
        fits = share_prefix(self.source, candidates, actual, consumed)
        judged = fits & self.inside(actual, consumed)[:, None]
        fits[judged] = self.inside(candidates[judged], np.broadcast_to(consumed[:, None], fits.shape)[judged])
        return fits

    def inside(
        self, ids: Integer[np.ndarray, "*shape"], consumed: Integer[np.ndarray, "*shape"]
    ) -> Bool[np.ndarray, "*shape"]:
        """Returns whether the target splits source tokens after their first `consumed` bytes; true at either end of a token."""
        out = np.ones(ids.shape, dtype=bool)
        within = (consumed > 0) & (consumed < self.source.lengths[ids])
        places = self.source.starts[ids[within]] + consumed[within]
        missing = np.unique(ids[within][self._begins[places] == UNKNOWN])
        if len(missing):
            begins = token_begins(self.target, [self.source[index] or b"" for index in missing.tolist()])
            for index, row in zip(missing.tolist(), begins, strict=True):
                start = int(self.source.starts[index])
                self._begins[start : start + len(row)] = row
        out[within] = self._begins[places] == 1
        return out

    def between(
        self, firsts: Integer[np.ndarray, "*shape"], seconds: Integer[np.ndarray, "*shape"]
    ) -> Bool[np.ndarray, "*shape"]:
        """Returns whether the target splits between two consecutive source tokens; true before a special token."""
        text = self.source.lengths[seconds] > 0
        keys = firsts[text].astype(np.int64) * self.source.vocab_size + seconds[text]
        places = np.searchsorted(self._pairs, keys)
        missing = np.unique(keys[self._pairs[np.minimum(places, len(self._pairs) - 1)] != keys])
        if len(missing):
            self._learn(missing)
            places = np.searchsorted(self._pairs, keys)
        out = np.ones(text.shape, dtype=bool)
        out[text] = self._pair_splits[places]
        return out

    def _learn(self, keys: Int[np.ndarray, "P"]) -> None:
        """Adds pairs to the table of known splits."""
        pairs = zip(*(part.tolist() for part in np.divmod(keys, self.source.vocab_size)), strict=True)
        parts = [(self.source[first] or b"", self.source[second] or b"") for first, second in pairs]
        begins = token_begins(self.target, [first + second for first, second in parts])
        found = [row[len(first)] == 1 for row, (first, _) in zip(begins, parts, strict=True)]
        known = np.concatenate([self._pairs, keys])
        order = np.argsort(known, kind="stable")
        self._pairs = known[order]
        self._pair_splits = np.concatenate([self._pair_splits, np.array(found, dtype=bool)])[order]


def token_begins(tokens: TokenBytes, texts: Sequence[bytes]) -> list[Int8[np.ndarray, "text"]]:
    """Returns for each byte of byte strings 1 where a token begins, else 0; `TargetSplits` describes the tokenization."""
    if tokens.bare is None:
        return [_marks(text, tokens, _longest_tokens(tokens, text)) for text in texts]
    valid = [place for place, text in enumerate(texts) if _is_text(text)]
    encodings = tokens.bare.encode_batch_fast([texts[place].decode() for place in valid], add_special_tokens=False)
    ids = dict(zip(valid, (encoding.ids for encoding in encodings), strict=True))
    return [_marks(text, tokens, ids.get(place, [])) for place, text in enumerate(texts)]


def _marks(text: bytes, tokens: TokenBytes, ids: list[int]) -> Int8[np.ndarray, "text"]:
    """Returns 1 at the first byte of each token; 1 everywhere if the tokens do not spell the text."""
    places = np.array(ids, dtype=np.int64)
    if (places >= tokens.vocab_size).any() or tokens.spell(places) != text:
        return np.ones(len(text), dtype=np.int8)
    begins = np.zeros(len(text), dtype=np.int8)
    ends = np.cumsum(tokens.lengths[places])
    begins[ends[:-1]] = 1
    begins[:1] = 1
    return begins


def _longest_tokens(tokens: TokenBytes, text: bytes) -> list[int]:
    """Splits a text greedily into the longest tokens; empty if no token fits."""
    longest, ids = int(tokens.lengths.max(initial=0)), []
    while text:
        ids.append(longest_match(tokens.id_of, text, longest))
        if ids[-1] == NOT_MAPPED:
            return []
        text = text[int(tokens.lengths[ids[-1]]) :]
    return ids


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
