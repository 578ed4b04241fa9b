"""Which source token speaks for which target position: an intersection of byte boundaries, for many rows at once.

Legend: B rows, N_s source tokens and N_t target tokens of all rows together.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from profuser.alignment.spans import Spans
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.signals.ragged import Ragged, offsets_of
from profuser.signals.rules import AlignmentRules, Rule


@dataclass(frozen=True, eq=False)
class Matches:
    """For each target position its rule and the source tokens that it speaks of."""

    rules: UInt8[np.ndarray, "N_t"]
    source: Int[np.ndarray, "N_t"]
    """The source token whose distribution is used (an index into all source tokens); means nothing under NONE."""
    consumed: Int[np.ndarray, "N_t"]
    """Bytes of that source token that lie before the position."""
    space: Int[np.ndarray, "N_t"]
    """At the first position of a row: -1 to take the source's leading space away, +1 to add the target's; else 0."""
    stop: Int[np.ndarray, "N_t"]
    """Under CHAIN: one past the last source token that lies wholly inside the target token."""
    cut: Bool[np.ndarray, "N_t"]
    """Under CHAIN: the target token ends inside source token `stop`, where the next position begins."""


def match(
    source_tokens: TokenBytes,
    source_ids: Ragged,
    source_spans: Spans,
    target_tokens: TokenBytes,
    target_ids: Ragged,
    target_spans: Spans,
) -> Matches:
    """Finds for each target position the source token that starts there or holds it, before any rule is switched off.

    Rows that either side refused, and rows without source tokens, get NONE throughout.
    """
    base = _row_bases(source_ids, source_spans, target_ids, target_spans)
    source_base, target_base = base[source_ids.row_of], base[target_ids.row_of]
    starts, ends = source_spans.starts + source_base, source_spans.ends + source_base
    here, beyond = target_spans.starts + target_base, target_spans.ends + target_base
    usable = _usable_rows(source_ids, source_spans, target_spans)[target_ids.row_of]
    if not len(starts) or not len(here):
        return _no_matches(len(here))
    source = np.searchsorted(starts, here, side="right") - 1
    consumed = here - starts[source]
    space = _settle_first_positions(source, consumed, source_ids, source_spans, target_ids, target_spans, usable)

    source_end = source_tokens.roles[source_ids.values[source]] == Role.END
    target_end = target_tokens.roles[target_ids.values] == Role.END
    inside = (consumed == 0) | (here < ends[source])
    usable &= inside & (source_end == target_end)
    reaches_beyond = beyond > ends[source]
    rules = np.where(consumed > 0, Rule.CONDITION, Rule.PROJECT)
    rules = np.where(reaches_beyond, Rule.CHAIN, np.where(target_end, Rule.END, rules))
    last = np.searchsorted(starts, beyond, side="right") - 1
    cut = (starts[last] < beyond) & (beyond < ends[last])
    stop = np.where((starts[last] < beyond) & ~cut, last + 1, last)
    return Matches(np.where(usable, rules, Rule.NONE).astype(np.uint8), source, consumed, space, stop, cut)


def switch_off(matches: Matches, rules: AlignmentRules) -> UInt8[np.ndarray, "N_t"]:
    """The rule of each position, NONE where a rule that it needs is off."""
    off = ~np.isin(matches.rules, [*rules.allowed])
    if Rule.CONDITION not in rules.allowed:
        off |= matches.consumed > 0
    return np.where(off, np.uint8(Rule.NONE), matches.rules)


def coverage(rules: Shaped[np.ndarray, "N_t"]) -> dict[str, int]:
    """Number of positions per rule, by the rule's name in lower case."""
    return {rule.name.lower(): int((rules == rule).sum()) for rule in Rule}


def _row_bases(
    source_ids: Ragged, source_spans: Spans, target_ids: Ragged, target_spans: Spans
) -> Int[np.ndarray, "B"]:
    """A number to add to the spans of each row, such that the spans of all rows rise and no two rows meet."""
    widest = np.zeros(len(source_ids), dtype=np.int64)
    for ids, spans in ((source_ids, source_spans), (target_ids, target_spans)):
        filled = ids.lengths > 0
        widest[filled] = np.maximum(widest[filled], spans.ends[ids.offsets[1:][filled] - 1])
    return offsets_of(widest + 3)[:-1] + 1


def _usable_rows(source_ids: Ragged, source_spans: Spans, target_spans: Spans) -> Bool[np.ndarray, "B"]:
    usable = source_ids.lengths > 0
    usable[[*source_spans.refused, *target_spans.refused]] = False
    return usable


def _settle_first_positions(
    source: Int[np.ndarray, "N_t"],
    consumed: Int[np.ndarray, "N_t"],
    source_ids: Ragged,
    source_spans: Spans,
    target_ids: Ragged,
    target_spans: Spans,
    usable: Bool[np.ndarray, "N_t"],
) -> Int[np.ndarray, "N_t"]:
    """Pairs first positions whose leading spaces differ, in place, and says how: -1 source has one, +1 target has one.

    Both stand at the beginning of the response. A source token that is but the space has a successor that starts
    exactly where the target does; that one is kept.
    """
    space = np.zeros(len(source), dtype=np.int64)
    firsts = target_ids.offsets[:-1][target_ids.lengths > 0]
    firsts = firsts[usable[firsts]]
    source_firsts = source_ids.offsets[target_ids.row_of[firsts]]
    difference = source_spans.starts[source_firsts] - target_spans.starts[firsts]
    apart = (difference > 0) | ((difference < 0) & (consumed[firsts] != 0))
    space[firsts[apart]] = difference[apart]
    source[firsts[apart]] = source_firsts[apart]
    consumed[firsts[apart]] = 0
    return space


def _no_matches(num: int) -> Matches:
    zeros = np.zeros(num, dtype=np.int64)
    return Matches(zeros.astype(np.uint8), zeros, zeros, zeros, zeros, zeros.astype(bool))
