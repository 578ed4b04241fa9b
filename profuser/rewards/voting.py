"""Inference-mode advantage: each reward model votes for the answer that it scores highest.

Where the paper leaves a choice open: an answer that every verifier rejects is no candidate, identical answers are one candidate, a
reward abstains if its best candidate leads by at most the margin or if it does not judge the row, a vote counts with the recipe's
weight, without a majority the mean standardised reward (weighted like the votes) decides or the row is skipped, and a tie of equals
is shared out by chance or skipped, never decided by the order of the sources.
Legend: N rows, M answers to a row (of each source one or several, source by source), R reward models.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from profuser.recipe.rewards import VoteConfig

ROUNDING = 1e-12
"""Standard deviation, relative to the mean, up to which rewards count as constant: rounding alone can cause it."""

HALF = 32
"""Bits of a row's random number that share out ties; the others share out identical answers."""


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of one reward model over all the answers that it scored."""

    mean: float
    std: float

    @classmethod
    def of(cls, scores: Float[np.ndarray, "..."]) -> "RewardScale":
        """Returns the scale of an array of scores, ignoring NaN; a constant reward has scale 1."""
        return cls.over([scores])

    @classmethod
    def over(cls, parts: Iterable[Float[np.ndarray, "..."]]) -> "RewardScale":
        """Returns the scale of several arrays taken together, holding one at a time (Chan, Golub and LeVeque, 1979)."""
        num, mean, squares = 0, 0.0, 0.0
        for part in parts:
            known = part[~np.isnan(part)]
            if known.size:
                num += known.size
                share, step = known.size / num, float(known.mean()) - mean
                mean += share * step
                squares += known.size * (float(known.var()) + (1 - share) * step**2)
        std = math.sqrt(squares / num) if num else 0.0
        # Rounding gives a constant reward a tiny spread.
        return cls(mean, std if std > ROUNDING * abs(mean) else 1.0)


@dataclass(frozen=True)
class Votes:
    """Outcome of the votes."""

    winner: Int[np.ndarray, "N"]
    """Index of the answer that won; -1 if there is no winner."""
    rejected: Bool[np.ndarray, "N M"]
    """Answers that every verifier of their row rejects."""
    tied: Bool[np.ndarray, "N"]
    """Rows in which several answers are equal in votes and mean reward."""
    judged: Bool[np.ndarray, "N"]
    """Rows of which at least one answer has a reward that counts."""
    votes: Float[np.ndarray, "N M"]
    """Sum of the weights of the votes for each answer; the votes for identical answers count for one of them."""
    choices: Int[np.ndarray, "N R"]
    """Index of the answer that each reward model chose; -1 if it abstained."""


def vote(
    scores: Float[np.ndarray, "N M R"],
    answers: Sequence[Sequence[str | None]],
    scales: Sequence[RewardScale],
    config: VoteConfig,
    weights: Sequence[float] | None = None,
    thresholds: Sequence[float | None] | None = None,
    draws: Sequence[int] | None = None,
) -> Votes:
    """Counts the votes of every row.

    Args:
        scores: reward of each answer; NaN for a missing one, and where a reward does not judge or refuses the row.
        answers: the answers, `[N][M]`; None for a missing one.
        scales: mean and deviation of each reward model, for margins and ties.
        config: margin, and what happens without a strict majority and in a tie.
        weights: weight of each reward model's vote; by default all are equal.
        thresholds: reward up to which each verifier rejects an answer; None for a reward that rejects none, as all do by default.
        draws: a random number per row, which shares out ties and identical answers; by default the first one is taken.
    """
    num_rows, num_sources, num_rewards = scores.shape
    standard = standardised(scores, scales)
    weight = np.ones(num_rewards) if weights is None else np.asarray(weights, dtype=np.float64)
    counts = weight > 0 if (weight > 0).any() else np.ones(num_rewards, dtype=bool)
    out = Votes(
        winner=np.full(num_rows, -1),
        rejected=_rejected(scores, weight, thresholds or [None] * num_rewards),
        tied=np.zeros(num_rows, dtype=bool),
        judged=np.zeros(num_rows, dtype=bool),
        votes=np.zeros((num_rows, num_sources)),
        choices=np.full((num_rows, num_rewards), -1),
    )
    for row in range(num_rows):
        draw = draws[row] if draws else 0
        present = distinct(answers[row], draw >> HALF)
        candidates = [index for index in present if not out.rejected[row, index]]
        known = ~np.isnan(standard[row, present])
        out.judged[row] = bool(known[:, counts].any())
        if not candidates or not out.judged[row]:
            continue
        # A reward that judges other answers of the row, but not this blank one, puts it last.
        rewards = np.where(np.isnan(standard[row]) & known.any(axis=0), -np.inf, standard[row])
        for judge in np.flatnonzero(known.any(axis=0)).tolist():
            out.choices[row, judge] = _choice(rewards[:, judge], candidates, config.margin)
            if out.choices[row, judge] >= 0:
                out.votes[row, out.choices[row, judge]] += weight[judge]
        # Rounded, so that weights of 0.1 and 0.2 together tie with one of 0.3.
        out.votes[row] = out.votes[row].round(9)
        counted = known.any(axis=0) & (weight > 0)
        mean = (rewards[:, counted] * weight[counted]).sum(axis=1) / num_rewards
        best = _best(out.votes[row], mean.round(9), candidates)
        out.tied[row] = len(best) > 1
        no_majority = config.no_majority == "skip" and 2 * out.votes[row].max() <= out.votes[row].sum()
        if not no_majority and not (out.tied[row] and config.ties == "skip"):
            out.winner[row] = best[draw % len(best)]
    return out


def row_draws(row_ids: Iterable[str], seed: int) -> list[int]:
    """Returns a random number of 64 bits per row, the same wherever the row is stored."""
    return [int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) for name in row_ids]


def _rejected(
    scores: Float[np.ndarray, "N M R"], weight: Float[np.ndarray, "R"], thresholds: Sequence[float | None]
) -> Bool[np.ndarray, "N M"]:
    """Returns the answers that every verifier rejects of those that have a weight and judge the row; none if no verifier does."""
    verifiers = [index for index, limit in enumerate(thresholds) if limit is not None and weight[index] > 0]
    part, limits = scores[..., verifiers], [thresholds[index] for index in verifiers]
    judges = ~np.isnan(part).all(axis=1, keepdims=True)
    accepted = part > np.array(limits, dtype=np.float64)
    accepted_by_any = np.any(accepted & judges, axis=2)
    return np.asarray(~accepted_by_any & np.any(judges, axis=2))


def standardised(scores: Float[np.ndarray, "N M R"], scales: Sequence[RewardScale]) -> Float[np.ndarray, "N M R"]:
    """Returns rewards in standard deviations from each reward model's mean."""
    return (scores - [s.mean for s in scales]) / [s.std for s in scales]


def distinct(answers: Sequence[str | None], draw: int = 0) -> list[int]:
    """Returns one index of every distinct answer, in order of first occurrence: the first, or the one that `draw` picks."""
    places: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            places.setdefault(answer, []).append(index)
    return [same[draw % len(same)] for same in places.values()]


def _choice(rewards: Float[np.ndarray, "M"], candidates: list[int], margin: float) -> int:
    """Returns the candidate that one judge prefers, or -1 if it leads by at most the margin, or was not scored."""
    candidates = [index for index in candidates if not np.isnan(rewards[index])]
    if not candidates:
        return -1
    if len(candidates) == 1:
        return candidates[0]
    ranked = sorted(candidates, key=lambda index: -rewards[index])
    return ranked[0] if rewards[ranked[0]] - rewards[ranked[1]] > margin else -1


def _best(votes: Float[np.ndarray, "M"], mean: Float[np.ndarray, "M"], candidates: list[int]) -> list[int]:
    """Returns the candidates with most votes, of these the ones with the highest mean standardised reward."""
    most = max((votes[index], mean[index]) for index in candidates)
    return [index for index in candidates if (votes[index], mean[index]) == most]
