"""Maps each source token to the target token that begins the same bytes, once per pair of tokenizers.

Legend: V_s, V_t vocabularies of source and target, A bytes of all source tokens together.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from profuser.alignment.edit_distance import nearest_tokens
from profuser.alignment.first_token import NOT_MAPPED, first_tokens
from profuser.alignment.splits import TargetSplits
from profuser.alignment.token_bytes import Role, TokenBytes

SPACE = b" "
UNRESOLVED = -2
Fallback = Literal["first_token", "min_edit", "tail"]


class ProjectionRule(IntEnum):
    """Rule that mapped a source token to its target token."""

    TAIL = 0
    """Not mapped: its mass goes to the tail."""
    EXACT = 1
    """The target has a token with the same bytes."""
    FIRST_TOKEN = 2
    """The first token of the target's tokenization of the bytes."""
    MIN_EDIT = 3
    """The target token at the smallest edit distance (FuseLLM's baseline)."""
    ROLE = 4
    """End of turn mapped to end of turn."""


class VocabProjection:
    """Maps source tokens, and their remainders after some bytes, to target tokens.

    `whole[i]` is the target token of source token i, -1 for the tail; `rules[i]` is the rule that mapped it. Remainders
    are looked up in a table with one entry per byte of the source vocabulary, filled on demand.
    """

    source: TokenBytes
    target: TokenBytes
    whole: Int32[np.ndarray, "V_s"]
    rules: UInt8[np.ndarray, "V_s"]
    splits: TargetSplits
    """Where the target's tokenizer splits source tokens."""

    def __init__(self, source: TokenBytes, target: TokenBytes, fallback: Fallback, specials: bool) -> None:
        self.source, self.target, self.specials = source, target, specials
        self.fallback: Fallback = fallback
        self.splits = TargetSplits(source, target)
        self._rest = np.full(len(source.blob), UNRESOLVED, dtype=np.int32)
        self._after_space = np.full(source.vocab_size, UNRESOLVED, dtype=np.int32)
        self.whole, self.rules = self._project_vocabulary()
        texts = source.lengths > 0
        self._rest[source.starts[texts]] = self.whole[texts]
        self._after_space[~texts] = self.whole[~texts]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies the tables that are filled on demand: those received from another process may be read-only."""
        self.__dict__ |= state | {name: state[name].copy() for name in ("_rest", "_after_space")}

    @classmethod
    def build(
        cls, source: TokenBytes, target: TokenBytes, fallback: Fallback = "first_token", specials: bool = True
    ) -> "VocabProjection":
        """Projects a whole vocabulary.

        A token is mapped to the target token with the same bytes, else by the fallback; an end of turn is mapped to the
        target's main end of turn. Between two tables of the same tokenizer (one may have more unused ids) every used id
        is mapped to itself.

        Args:
            source: table of the source's tokenizer.
            target: table of the target's tokenizer.
            fallback: for a source token whose bytes are not a target token: `first_token` of the target's tokenization of
                the bytes, `min_edit` for the target token at the smallest edit distance, `tail` for none.
            specials: whether special tokens are mapped by role; otherwise their mass goes to the tail.
        """
        return cls(source, target, fallback, specials)

    def of(self, source: TokenBytes) -> "VocabProjection":
        """Returns the projection of another vocabulary to the same target, by the same rules."""
        return VocabProjection(source, self.target, self.fallback, self.specials)

    def counts(self) -> dict[str, int]:
        """Returns the number of source tokens per rule, over the ids that the source's tokenizer has."""
        used = self.rules[self.source.roles != Role.UNUSED]
        return {rule.name.lower(): int((used == rule).sum()) for rule in ProjectionRule}

    def rest(
        self, ids: Integer[np.ndarray, "*shape"], consumed: Integer[np.ndarray, "*shape"]
    ) -> Int32[np.ndarray, "*shape"]:
        """Returns target tokens for what is left of source tokens once their first bytes are consumed.

        Args:
            ids: source token ids.
            consumed: number of bytes to leave out, at most the token's length.

        Returns:
            Target ids; -1 (tail) where nothing is left. A token without bytes is mapped as a whole.
        """
        out = np.where(consumed == 0, self.whole[ids], np.int32(NOT_MAPPED))
        left = (consumed > 0) & (consumed < self.source.lengths[ids])
        places = self.source.starts[ids[left]] + consumed[left]
        missing = np.unique(places[self._rest[places] == UNRESOLVED])
        if len(missing):
            owners = np.searchsorted(self.source.starts, missing, side="right") - 1
            ends = self.source.starts[owners] + self.source.lengths[owners]
            blob = self.source.blob.tobytes()
            self._rest[missing] = self._resolve(
                [blob[a:b] for a, b in zip(missing.tolist(), ends.tolist(), strict=True)]
            )
        out[left] = self._rest[places]
        return out

    def without_space(self, ids: Integer[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
        """Returns target tokens for source tokens at the beginning of a response, whose leading space is the source's convention.

        A token without a leading space is mapped unchanged; a token that is only a space carries no information and goes
        to the tail.
        """
        begins = np.zeros(self.source.vocab_size, dtype=np.int64)
        texts = self.source.lengths > 0
        begins[texts] = self.source.blob[self.source.starts[texts]] == SPACE[0]
        return self.rest(ids, begins[ids])

    def with_space(self, ids: Integer[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
        """Returns target tokens for source tokens at the start of a response that the target begins with its own space."""
        missing = np.unique(ids[self._after_space[ids] == UNRESOLVED])
        if len(missing):
            self._after_space[missing] = self._resolve(
                [SPACE + (self.source[index] or b"") for index in missing.tolist()]
            )
        return self._after_space[ids]

    def _project_vocabulary(self) -> tuple[Int32[np.ndarray, "V_s"], UInt8[np.ndarray, "V_s"]]:
        source, target = self.source, self.target
        whole = np.full(source.vocab_size, NOT_MAPPED, dtype=np.int32)
        rules = np.full(source.vocab_size, ProjectionRule.TAIL, dtype=np.uint8)
        same = _same_tokenizer(source, target)
        texts = np.flatnonzero(source.lengths > 0)
        if same:
            whole[texts], rules[texts] = texts, ProjectionRule.EXACT
        else:
            data = [source[index] or b"" for index in texts.tolist()]
            exact = np.array([piece in target.id_of for piece in data], dtype=bool)
            whole[texts] = self._resolve(data)
            other = ProjectionRule.MIN_EDIT if self.fallback == "min_edit" else ProjectionRule.FIRST_TOKEN
            rules[texts] = np.where(exact, ProjectionRule.EXACT, other)
        if self.specials:
            self._project_specials(whole, same)
            rules[source.lengths == 0] = ProjectionRule.ROLE
        rules[whole == NOT_MAPPED] = ProjectionRule.TAIL
        return whole, rules

    def _project_specials(self, whole: Int32[np.ndarray, "V_s"], same: bool) -> None:
        """Maps tokens without bytes: ends by role; the others to themselves, only between tables of one tokenizer."""
        ends = self.source.roles == Role.END
        if self.target.end_ids:
            whole[ends] = self.target.end_ids[0]
        if same:
            num = min(self.source.vocab_size, self.target.vocab_size)
            roles = self.source.roles[:num]
            itself = (roles == self.target.roles[:num]) & (roles != Role.TEXT) & (roles != Role.UNUSED)
            whole[:num][itself] = np.flatnonzero(itself)

    def _resolve(self, texts: Sequence[bytes]) -> Int32[np.ndarray, "texts"]:
        """Returns target tokens of non-empty byte strings: the token with the same bytes, or else the fallback."""
        out = np.array([self.target.id_of.get(text, NOT_MAPPED) for text in texts], dtype=np.int32)
        missing = np.flatnonzero(out == NOT_MAPPED)
        if self.fallback != "tail" and len(missing):
            search = first_tokens if self.fallback == "first_token" else nearest_tokens
            out[missing] = search(self.target, [texts[place] for place in missing.tolist()])
        return out


def _same_tokenizer(source: TokenBytes, target: TokenBytes) -> bool:
    """Returns whether every id that has bytes has the same in both tables, and the longer table adds nothing."""
    num = min(source.vocab_size, target.vocab_size)
    same = np.array_equal(source.lengths[:num], target.lengths[:num]) and np.array_equal(source.blob, target.blob)
    return same and not source.lengths[num:].any() and not target.lengths[num:].any()
