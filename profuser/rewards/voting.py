"""Inference-mode advantage: reward models vote by rank for the best answer.

Ours where the paper is open: identical answers are one candidate, a reward model abstains where its best candidate leads by no
more than a margin, a vote counts as much as the recipe's weight says, and a missing majority is decided by the mean standardised
reward (weighted as the votes are) or skipped.
Legend: N rows, M sources, R reward models.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from profuser.recipe.rewards import VoteConfig

ROUNDING = 1e-12
"""Relative size of what rounding makes of a spread of zero, at most."""


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of one reward model over all the answers that it scored."""

    mean: float
    std: float

    @classmethod
    def of(cls, scores: Float[np.ndarray, "..."]) -> "RewardScale":
        """The scale of an array of scores, NaN left out; a constant reward has scale 1."""
        return cls.over([scores])

    @classmethod
    def over(cls, parts: Iterable[Float[np.ndarray, "..."]]) -> "RewardScale":
        """The scale of arrays of scores as of one, of which only one is held at a time (Chan, Golub and LeVeque, 1979)."""
        num, mean, squares = 0, 0.0, 0.0
        for part in parts:
            known = part[~np.isnan(part)]
            if known.size:
                num += known.size
                share, step = known.size / num, float(known.mean()) - mean
                mean += share * step
                squares += known.size * (float(known.var()) + (1 - share) * step**2)
        std = math.sqrt(squares / num) if num else 0.0
        # A constant is not quite one after rounding.
        return cls(mean, std if std > ROUNDING * abs(mean) else 1.0)


@dataclass(frozen=True)
class Votes:
    """Outcome of the votes."""

    winner: Int[np.ndarray, "N"]
    """Index of the source whose answer won; -1 where there is none."""
    votes: Float[np.ndarray, "N M"]
    """Sum of the weights of those that chose each source; votes for an answer that several gave count for the first of them."""
    choices: Int[np.ndarray, "N R"]
    """The source that each reward model chose; -1 where it abstained."""


def vote(
    scores: Float[np.ndarray, "N M R"],
    answers: Sequence[Sequence[str | None]],
    scales: Sequence[RewardScale],
    config: VoteConfig,
    weights: Sequence[float] | None = None,
) -> Votes:
    """Counts the votes of every row.

    Args:
        scores: reward of each source's answer; NaN where a source has none.
        answers: the answers themselves, `[N][M]`, None where there is none.
        scales: of each reward model, for margins and ties.
        config: margin, and what happens without a strict majority.
        weights: what the vote of each reward model counts; by default all count the same.
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
        # Weights of 0.1 and 0.2 tie with one of 0.3.
        votes[row] = votes[row].round(9)
        winner[row] = _winner(votes[row], (standard[row] * weight).mean(axis=1), candidates, config.no_majority)
    return Votes(winner, votes, choices)


def standardised(scores: Float[np.ndarray, "N M R"], scales: Sequence[RewardScale]) -> Float[np.ndarray, "N M R"]:
    """Rewards in standard deviations from each reward model's mean."""
    return (scores - [s.mean for s in scales]) / [s.std for s in scales]


def distinct(answers: Sequence[str | None]) -> list[int]:
    """The first source of every distinct answer."""
    first: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            first.setdefault(answer, index)
    return list(first.values())


def _choice(rewards: Float[np.ndarray, "M"], candidates: list[int], margin: float) -> int:
    """The candidate that one judge likes best, or -1 where it leads by no more than the margin."""
    if len(candidates) == 1:
        return candidates[0]
    ranked = sorted(candidates, key=lambda index: -rewards[index])
    return ranked[0] if rewards[ranked[0]] - rewards[ranked[1]] > margin else -1


def _winner(
    votes: Float[np.ndarray, "M"], mean: Float[np.ndarray, "M"], candidates: list[int], no_majority: str
) -> int:
    """Most votes; ties by mean standardised reward, then by order of the sources."""
    if no_majority == "skip" and 2 * votes.max() <= votes.sum():
        return -1
    return max(candidates, key=lambda index: (votes[index], mean[index], -index))
