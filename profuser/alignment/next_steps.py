"""Finds used-up candidates (source tokens that spell exactly the consumed bytes) and projects the step that follows them.

Legend: N_s, N_t tokens of source and target of all rows together, n positions, K top-k, C candidates, U used-up candidates, W
columns appended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from profuser.alignment.matching import match, switch_off
from profuser.alignment.source_signals import NextSteps, SourceSignals, share_prefix
from profuser.alignment.spans import byte_spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule

MIN_SHARE = 1e-3
"""Minimum share of the conditioned mass: a used-up candidate below it is not worth a request and goes to the tail."""


def find_used_up(
    signals: SourceSignals,
    target_ids: Ragged,
    responses: Sequence[bytes],
    source: TokenBytes,
    target: TokenBytes,
    rules: AlignmentRules,
) -> tuple[Int[np.ndarray, "U"], Int[np.ndarray, "U"]]:
    """Finds the candidates whose next step is needed for an exact CONDITION.

    Args:
        signals: the source's tokens and distributions along the responses; N_s positions.
        target_ids: target tokens of each row; N_t positions.
        responses: the bytes of each row's response.
        source: table of the source's tokenizer.
        target: table of the target's tokenizer.
        rules: which rules may carry a distribution.

    Returns:
        Source positions, ascending, and the candidates to put there. Rows that one side's tokens do not spell have none.
    """
    spans = byte_spans(source, signals.ids, responses), byte_spans(target, target_ids, responses)
    matches = match(source, signals.ids, spans[0], target, target_ids, spans[1])
    inside = (switch_off(matches, rules) != Rule.NONE) & (matches.consumed > 0)
    positions, consumed = matches.source[inside], matches.consumed[inside]
    candidates, mass, _ = signals.candidates(positions)
    mass *= share_prefix(source, candidates, signals.ids.values[positions], consumed)
    enough = mass >= MIN_SHARE * mass.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero((mass > 0) & enough & (source.lengths[candidates] == consumed[:, None]))
    pairs = np.unique(np.stack([positions[rows], candidates[rows, columns]]), axis=1)
    return pairs[0], pairs[1]


@dataclass(frozen=True, eq=False)
class Followed:
    """The next steps of U used-up candidates of n positions."""

    rows: Int[np.ndarray, "U"]
    columns: Int[np.ndarray, "U"]
    """Indices of the position (`rows`) and of its candidate."""
    possible: Float[np.ndarray, "U"]
    """Share of the source's next-token mass that does not contradict what the target has emitted."""
    ids: Int32[np.ndarray, "U K"]
    """Target tokens that begin the next source tokens; -1 for the tail."""
    mass: Float[np.ndarray, "U K"]
    """Their masses, conditioned on no contradiction; the remainder to 1 is the tail of the step."""

    @classmethod
    def of(
        cls,
        steps: NextSteps,
        positions: Int[np.ndarray, "n"],
        candidates: Int[np.ndarray, "n C"],
        used_up: Bool[np.ndarray, "n C"],
        projection: VocabProjection,
    ) -> "Followed":
        """Looks up and projects the steps of used-up candidates; a candidate without a step is left out."""
        rows, columns = np.nonzero(used_up)
        found = steps.find(positions[rows], candidates[rows, columns])
        rows, columns, found = (part[found >= 0] for part in (rows, columns, found))
        following = steps.topk.ids[found].astype(np.int64)
        mass = np.exp(steps.topk.logprobs[found].astype(np.float64))
        firsts = np.broadcast_to(candidates[rows, columns, None], following.shape)
        fits = projection.splits.between(firsts, following)
        possible = np.maximum(1.0 - np.where(fits, 0.0, mass).sum(axis=1), 0.0)
        mass = np.where(fits, mass, 0.0)
        mass = np.divide(mass, possible[:, None], out=np.zeros_like(mass), where=possible[:, None] > 0)
        return cls(rows, columns, possible, projection.whole[following], mass)

    def extra_columns(
        self, mass: Float[np.ndarray, "n C"]
    ) -> tuple[Int32[np.ndarray, "n W"], Float[np.ndarray, "n W"]]:
        """Returns ids and masses of all next tokens as W columns to append to those of `mass` (an empty slot has mass 0)."""
        rank = np.arange(len(self.rows)) - np.searchsorted(self.rows, self.rows)
        shape = (len(mass), int(rank.max(initial=-1)) + 1, self.ids.shape[1])
        ids, more = np.full(shape, -1, dtype=np.int32), np.zeros(shape)
        ids[self.rows, rank] = self.ids
        more[self.rows, rank] = mass[self.rows, self.columns, None] * self.mass
        return ids.reshape(len(mass), shape[1] * shape[2]), more.reshape(len(mass), shape[1] * shape[2])
