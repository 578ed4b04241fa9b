"""Transports a source's distributions along a response to the positions of a target with another tokenizer.

Legend: B rows, S and T source and target tokens of a row, N_s and N_t those of all rows together, K top-k, C
candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32, Integer, UInt8

from profuser.alignment.mass import empty_top_k, sum_mapped, sum_top_k
from profuser.alignment.matching import Matches, match, switch_off
from profuser.alignment.next_steps import Followed
from profuser.alignment.source_signals import NextSteps, SourceSignals, share_prefix
from profuser.alignment.spans import byte_spans
from profuser.alignment.vocab_projection import VocabProjection
from profuser.errors import AlignmentError
from profuser.signals.codec import RaggedTopK, TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule

ALL_RULES = AlignmentRules()
MIN_LOGPROB = -1.0e4
"""Lower bound of log-probabilities, below any that a float can hold; keeps differences of their sums finite."""


@dataclass(frozen=True, eq=False)
class Transported:
    """Distributions over the target's vocabulary at T target positions; position t predicts target token t."""

    topk: TopK
    rules: UInt8[np.ndarray, "T"]
    """`Rule` per position; NONE has an empty distribution: cross-entropy only."""


@dataclass(frozen=True, eq=False)
class TransportedRows:
    """Transported distributions of B concatenated rows, and the refused rows."""

    topk: RaggedTopK
    rules: Ragged
    refused: dict[int, str]
    """Rows where a tokenization does not spell the response, with the reason. All their positions are NONE."""

    def row(self, index: int) -> Transported:
        """Returns one row, as views."""
        return Transported(self.topk.row(index), self.rules.row(index))


def transport(
    source_ids: Integer[np.ndarray, "S"],
    source_logprobs: Float[np.ndarray, "S"],
    source_topk: TopK,
    target_ids: Integer[np.ndarray, "T"],
    response: bytes,
    projection: VocabProjection,
    rules: AlignmentRules = ALL_RULES,
    top_k: int | None = None,
) -> Transported:
    """Applies `transport_rows` to one row.

    Raises:
        AlignmentError: a tokenization does not spell the response.
    """
    signals = SourceSignals(Ragged.from_rows([source_ids]), source_logprobs, source_topk)
    rows = transport_rows(signals, Ragged.from_rows([target_ids]), [response], projection, rules, top_k)
    if rows.refused:
        raise AlignmentError(rows.refused[0])
    return rows.row(0)


def transport_rows(
    signals: SourceSignals,
    target_ids: Ragged,
    responses: Sequence[bytes],
    projection: VocabProjection,
    rules: AlignmentRules = ALL_RULES,
    top_k: int | None = None,
) -> TransportedRows:
    """Transports the distributions of B rows to the target's positions.

    If a source token starts at the position, its top-k is projected. Inside a source token, the candidates (and the realised
    token) that begin with the consumed bytes, and that the target would split there, are kept and divided by their sum, and
    their remaining bytes are projected. A candidate that spells exactly the consumed bytes is used up: its mass is spread over
    the target tokens that begin the source's next tokens if `signals.steps` has them (`select.condition: exact`), else it goes
    to the tail. If the target token extends past the source token, the realised candidate's mass p goes to the target token as
    the product `p * p(next source token) * ...`, and the rest of p to the tail; a source token that straddles the end counts with
    the mass of all candidates that share its prefix. Masses on one target token are summed; projected mass and tail sum to 1.

    Exactness. The reference is the distribution of the target's next token, given its tokens so far, that the source's own
    continuations define, with the whole vocabulary as top-k (a smaller K leaves more in the tail). A candidate determines the
    next token alone if it has bytes left, these are not a proper prefix of a target token, and the target splits here in any
    context. The mass of such a candidate is exact under PROJECT, CONDITION and END, and so is that of a used-up candidate and its
    next token under `exact`. The approximations: a candidate whose remaining bytes could merge with what follows gets their first
    token; a used-up candidate goes to the tail under `tail`; CONDITION ignores tokenizations that spell the consumed bytes in
    several tokens, and checks splits on the bytes from the source token's start alone (a target token that began before it can
    change them); PROJECT does not check whether the target would have merged a candidate with the previous token. The error, in
    total variation, is at most the mass of these (tests/alignment/test_dense.py). CHAIN is exact for the realised token if the
    source spells it in only one way and it is not a proper prefix of a target token; elsewhere it is the mass of one path.

    Args:
        signals: the source's tokens and distributions; N_s positions.
        target_ids: target tokens of each row, including a final end of turn; N_t positions.
        responses: the bytes of each row's response.
        projection: from the source's vocabulary to the target's.
        rules: which rules may carry a distribution.
        top_k: number of target tokens to keep; the source's K by default.

    Returns:
        Distributions in the dtype of the source's log-probabilities.

    Raises:
        AlignmentError: the signals disagree in length, or a candidate is outside the source's vocabulary.
    """
    _check(signals, target_ids, responses, projection)
    source_spans = byte_spans(projection.source, signals.ids, responses)
    target_spans = byte_spans(projection.target, target_ids, responses)
    matches = match(projection.source, signals.ids, source_spans, projection.target, target_ids, target_spans)
    used = switch_off(matches, rules)
    kept = top_k or signals.topk.top_k
    topk = empty_top_k(len(target_ids.values), kept)

    plain = np.flatnonzero((used == Rule.PROJECT) | (used == Rule.END))
    sum_mapped(signals.topk, matches.source[plain], projection.whole, topk, plain)
    settled = plain[matches.space[plain] != 0]
    _put(topk, settled, sum_top_k(*_settle_space(signals.topk, matches, settled, projection), kept))
    partial = np.flatnonzero((used == Rule.CONDITION) | (used == Rule.CHAIN))
    followed = np.isin(matches.source[partial], signals.steps.positions if signals.steps else ())
    for places, steps in ((partial[~followed], None), (partial[followed], signals.steps)):
        ids, mass = _condition_and_chain(signals, target_ids.values, matches, places, projection, steps)
        with np.errstate(divide="ignore"):
            _put(topk, places, sum_top_k(ids, np.log(mass), kept))
    # No mass arrived: no candidate begins with the consumed bytes, or all are specials that the target does not have.
    used[topk.logprobs[:, 0] == -np.inf] = Rule.NONE
    topk = TopK(topk.ids, topk.logprobs.astype(signals.topk.logprobs.dtype, copy=False))
    rows = RaggedTopK(topk, target_ids.offsets)
    refused = source_spans.refused | target_spans.refused
    return TransportedRows(rows, Ragged(used, target_ids.offsets), refused)


def _settle_space(
    source: TopK, matches: Matches, places: Int[np.ndarray, "n"], projection: VocabProjection
) -> tuple[Int32[np.ndarray, "n K"], Float[np.ndarray, "n K"]]:
    """Returns target ids and log-probabilities of the source's top-k at first positions where one side has a leading space."""
    positions = matches.source[places]
    ids = np.empty((len(places), source.top_k), dtype=np.int32)
    for sign, settle in ((-1, projection.without_space), (1, projection.with_space)):
        firsts = matches.space[places] == sign
        ids[firsts] = settle(source.ids[positions[firsts]])
    return ids, source.logprobs[positions]


def _condition_and_chain(
    signals: SourceSignals,
    target_ids: Integer[np.ndarray, "N_t"],
    matches: Matches,
    places: Int[np.ndarray, "n"],
    projection: VocabProjection,
    steps: NextSteps | None,
) -> tuple[Int32[np.ndarray, "n C"], Float[np.ndarray, "n C"]]:
    """Returns target ids and masses of the top-k and the realised token, conditioned and chained, then of their next steps.

    A position where no candidate begins with the consumed bytes has no mass.
    """
    positions, consumed = matches.source[places], matches.consumed[places]
    candidates, mass, realised = signals.candidates(positions)
    used = np.broadcast_to(consumed[:, None], candidates.shape)
    kept = projection.splits.fitting(candidates, signals.ids.values[positions], consumed)
    mass = np.where(kept, mass, 0.0)
    followed = None
    if steps:
        used_up = kept & (used > 0) & (projection.source.lengths[candidates] == used)
        followed = Followed.of(steps, positions, candidates, used_up, projection)
        mass[followed.rows, followed.columns] *= followed.possible
    total = np.where(consumed > 0, mass.sum(axis=1), 1.0)
    mass = np.divide(mass, total[:, None], out=np.zeros_like(mass), where=total[:, None] > 0)

    ids = np.full(candidates.shape, -1, dtype=np.int32)
    ids[kept] = projection.rest(candidates[kept], used[kept])
    for sign, settle in ((-1, projection.without_space), (1, projection.with_space)):
        firsts = np.flatnonzero(matches.space[places] == sign)
        ids[firsts] = settle(candidates[firsts])

    chained = realised & (matches.rules[places] == Rule.CHAIN)[:, None]
    rows = np.nonzero(chained)[0]
    ids[chained] = target_ids[places[rows]]
    mass[chained] *= np.exp(_log_continuation(signals, matches, places[rows], projection))
    if followed is None:
        return ids, mass
    more_ids, more_mass = followed.extra_columns(mass)
    return np.concatenate([ids, more_ids], axis=1), np.concatenate([mass, more_mass], axis=1)


def _log_continuation(
    signals: SourceSignals, matches: Matches, places: Int[np.ndarray, "n"], projection: VocabProjection
) -> Float[np.ndarray, "n"]:
    """Returns the log-probability of the source tokens, after the first, that the target token at each place spans."""
    running = np.zeros(len(signals.logprobs) + 1)
    np.cumsum(np.maximum(signals.logprobs.astype(np.float64), MIN_LOGPROB), out=running[1:])
    log_rest = running[matches.stop[places]] - running[matches.source[places] + 1]
    cut = np.flatnonzero(matches.cut[places])
    straddling, begun = matches.source[places[cut] + 1], matches.consumed[places[cut] + 1]
    candidates, mass, _ = signals.candidates(straddling)
    kept = share_prefix(projection.source, candidates, signals.ids.values[straddling], begun)
    with np.errstate(divide="ignore"):
        log_rest[cut] += np.log((mass * kept).sum(axis=1))
    return np.minimum(log_rest, 0.0)


def _put(topk: TopK, places: Int[np.ndarray, "n"], part: TopK) -> None:
    topk.ids[places], topk.logprobs[places] = part.ids, part.logprobs


def _check(signals: SourceSignals, target_ids: Ragged, responses: Sequence[bytes], projection: VocabProjection) -> None:
    """Raises AlignmentError if the signals are inconsistent."""
    tokens = (len(signals.ids.values), len(signals.logprobs), signals.topk.num_positions)
    rows = (len(signals.ids), len(target_ids), len(responses))
    if len(set(tokens)) > 1 or len(set(rows)) > 1:
        raise AlignmentError(f"tokens, log-probabilities and top-k have lengths {tokens}, rows {rows}: they must agree")
    ids, size = signals.topk.ids, projection.source.vocab_size
    if ids.size and (int(ids.max()) >= size or int(ids.min()) < 0):
        raise AlignmentError(
            f"candidates run from {ids.min()} to {ids.max()}, outside the source's vocabulary of {size}"
        )
