"""Inference-mode advantage: each reward model votes for the answer that it scores highest.

Where the paper leaves a choice open: identical answers are one candidate, a reward model abstains if its best candidate leads by
at most the margin, a vote counts with the recipe's weight, and without a majority the mean standardised reward (weighted like the
votes) decides or the row is skipped.
Legend: N rows, M answers to a row (of each source one or several, source by source), R reward models.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from profuser.recipe.rewards import VoteConfig

ROUNDING = 1e-12
"""Standard deviation, relative to the mean, up to which rewards count as constant: rounding alone can cause it."""


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
    votes: Float[np.ndarray, "N M"]
    """Sum of the weights of the votes for each answer; the votes for identical answers count for the first of them."""
    choices: Int[np.ndarray, "N R"]
    """Index of the answer that each reward model chose; -1 if it abstained."""


def vote(
    scores: Float[np.ndarray, "N M R"],
    answers: Sequence[Sequence[str | None]],
    scales: Sequence[RewardScale],
    config: VoteConfig,
    weights: Sequence[float] | None = None,
) -> Votes:
    """Counts the votes of every row.

    Args:
        scores: reward of each answer; NaN for a missing one, and for one that the reward refused.
        answers: the answers, `[N][M]`; None for a missing one.
        scales: mean and deviation of each reward model, for margins and ties.
        config: margin, and what happens without a strict majority.
        weights: weight of each reward model's vote; by default all are equal.
    """
    num_rows, num_sources, num_rewards = scores.shape
    standard = standardised(scores, scales)
    weight = np.ones(num_rewards) if weights is None else np.asarray(weights, dtype=np.float64)
    choices = np.full((num_rows, num_rewards), -1)
    votes = np.zeros((num_rows, num_sources))
    winner = np.full(num_rows, -1)
    for row in range(num_rows):
        candidates = distinct(answers[row])
        if not candidates:
            continue
        for judge in range(num_rewards):
            choices[row, judge] = _choice(standard[row, :, judge], candidates, config.margin)
            if choices[row, judge] >= 0:
                votes[row, choices[row, judge]] += weight[judge]
        # Rounded, so that weights of 0.1 and 0.2 together tie with one of 0.3.
        votes[row] = votes[row].round(9)
        # A judge that refused the conversation has scored none of its answers.
        mean = np.nansum(standard[row] * weight, axis=1) / num_rewards
        winner[row] = _winner(votes[row], mean, candidates, config.no_majority)
    return Votes(winner, votes, choices)


def standardised(scores: Float[np.ndarray, "N M R"], scales: Sequence[RewardScale]) -> Float[np.ndarray, "N M R"]:
    """Returns rewards in standard deviations from each reward model's mean."""
    return (scores - [s.mean for s in scales]) / [s.std for s in scales]


def distinct(answers: Sequence[str | None]) -> list[int]:
    """Returns the index of the first occurrence of every distinct answer."""
    first: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            first.setdefault(answer, index)
    return list(first.values())


def _choice(rewards: Float[np.ndarray, "M"], candidates: list[int], margin: float) -> int:
    """Returns the candidate that one judge prefers, or -1 if it leads by at most the margin, or was not scored."""
    candidates = [index for index in candidates if not np.isnan(rewards[index])]
    if not candidates:
        return -1
    if len(candidates) == 1:
        return candidates[0]
    ranked = sorted(candidates, key=lambda index: -rewards[index])
    return ranked[0] if rewards[ranked[0]] - rewards[ranked[1]] > margin else -1


def _winner(
    votes: Float[np.ndarray, "M"], mean: Float[np.ndarray, "M"], candidates: list[int], no_majority: str
) -> int:
    """Returns the answer with most votes; ties go to the higher mean standardised reward, then to the earlier answer."""
    if no_majority == "skip" and 2 * votes.max() <= votes.sum():
        return -1
    return max(candidates, key=lambda index: (votes[index], mean[index], -index))
