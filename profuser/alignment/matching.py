"""Matches target positions to source tokens by intersecting byte boundaries, for many rows at once.

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
    """The rule and the source tokens of each target position."""

    rules: UInt8[np.ndarray, "N_t"]
    source: Int[np.ndarray, "N_t"]
    """Source token whose distribution is used (an index into all source tokens); undefined under NONE."""
    consumed: Int[np.ndarray, "N_t"]
    """Bytes of that source token that precede the position."""
    space: Int[np.ndarray, "N_t"]
    """At the first position of a row: -1 to remove the source's leading space, +1 to add the target's; else 0."""
    stop: Int[np.ndarray, "N_t"]
    """Under CHAIN: one past the last source token that is wholly inside the target token."""
    cut: Bool[np.ndarray, "N_t"]
    """Under CHAIN: whether the target token ends inside source token `stop`, where the next position begins."""


def match(
    source_tokens: TokenBytes,
    source_ids: Ragged,
    source_spans: Spans,
    target_tokens: TokenBytes,
    target_ids: Ragged,
    target_spans: Spans,
) -> Matches:
    """Finds for each target position the source token that starts there or contains it, before any rule is switched off.

    All positions are NONE in rows that either side refused and in rows without source tokens.
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
    space = _pair_first_positions(source, consumed, source_ids, source_spans, target_ids, target_spans, usable)

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
    """Returns the rule of each position, NONE where a rule that it needs is off."""
    off = ~np.isin(matches.rules, [*rules.allowed])
    if Rule.CONDITION not in rules.allowed:
        off |= matches.consumed > 0
    return np.where(off, np.uint8(Rule.NONE), matches.rules)


def coverage(rules: Shaped[np.ndarray, "N_t"]) -> dict[str, int]:
    """Returns the number of positions per rule, by the rule's name in lower case."""
    return {rule.name.lower(): int((rules == rule).sum()) for rule in Rule}


def _row_bases(
    source_ids: Ragged, source_spans: Spans, target_ids: Ragged, target_spans: Spans
) -> Int[np.ndarray, "B"]:
    """Returns an offset to add to each row's spans, so that spans ascend over all rows and no two rows touch."""
    widest = np.zeros(len(source_ids), dtype=np.int64)
    for ids, spans in ((source_ids, source_spans), (target_ids, target_spans)):
        filled = ids.lengths > 0
        widest[filled] = np.maximum(widest[filled], spans.ends[ids.offsets[1:][filled] - 1])
    return offsets_of(widest + 3)[:-1] + 1


def _usable_rows(source_ids: Ragged, source_spans: Spans, target_spans: Spans) -> Bool[np.ndarray, "B"]:
    usable = source_ids.lengths > 0
    usable[[*source_spans.refused, *target_spans.refused]] = False
    return usable


def _pair_first_positions(
    source: Int[np.ndarray, "N_t"],
    consumed: Int[np.ndarray, "N_t"],
    source_ids: Ragged,
    source_spans: Spans,
    target_ids: Ragged,
    target_spans: Spans,
    usable: Bool[np.ndarray, "N_t"],
) -> Int[np.ndarray, "N_t"]:
    """Pairs first positions whose leading spaces differ, in place. Returns -1 where the source has one, +1 where the target has.

    Both tokens are at the beginning of the response. If the source's first token is only the space, its successor
    starts exactly where the target does; that pairing is kept.
    """
    space = np.zeros(len(source), dtype=np.int64)
    firsts = target_ids.offsets[:-1][target_ids.lengths > 0]
    firsts = firsts[usable[firsts]]
    source_firsts = source_ids.offsets[target_ids.row_of[firsts]]
    difference = source_spans.starts[source_firsts] - target_spans.starts[firsts]
    unpaired = (difference > 0) | ((difference < 0) & (consumed[firsts] != 0))
    space[firsts[unpaired]] = difference[unpaired]
    source[firsts[unpaired]] = source_firsts[unpaired]
    consumed[firsts[unpaired]] = 0
    return space


def _no_matches(num: int) -> Matches:
    zeros = np.zeros(num, dtype=np.int64)
    return Matches(zeros.astype(np.uint8), zeros, zeros, zeros, zeros, zeros.astype(bool))
