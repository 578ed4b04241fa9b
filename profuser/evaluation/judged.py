"""Judged win rate: how often the rewards prefer one model's held-out answers to another's, raw and at equal length.

A reward scores one answer at a time and never sees two, so there is no position bias. The vote over rewards is still taken in both
orders and averaged, so that a tie counts one half and swapping sides gives exactly one minus the rate.

Length control follows length-controlled AlpacaEval (Dubois et al., arXiv 2404.04475) without its term for the difficulty of an
instruction, which needs many models: over rows i with outcome w_i (1 won, 0.5 tied, 0 lost) and difference of length d_i,

    logit P(w_i) = theta + phi * tanh(d_i / std(d)),        rate at equal length = 1 / (1 + exp(-theta)).

Legend: N held-out rows that no model refused, M models, R rewards, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from profuser.artifacts.schemas import JUDGE
from profuser.evaluation.statistics import Estimate, estimate, resamples
from profuser.recipe.rewards import VoteConfig
from profuser.rewards.judges import Judge
from profuser.rewards.voting import RewardScale, vote

RIDGE = 1e-3
"""Keeps theta and phi finite if every row was won, or if length alone determines who wins; otherwise its effect is negligible."""
LONGEST_STEP, NUM_STEPS, TOLERANCE = 4.0, 60, 1e-9
"""Newton's method: largest change of theta or phi in a step, maximum number of steps, and change below which it stops."""


@dataclass(frozen=True)
class JudgedAnswers:
    """Every model's answers to the held-out rows, and every reward's scores of them."""

    models: tuple[str, ...]
    rewards: tuple[str, ...]
    answers: Sequence[Sequence[str | None]]
    """`[N][M]`; None for a blank answer, which loses against any other."""
    scores: Float[np.ndarray, "N M R"]
    """NaN if there is no answer."""
    row_ids: Sequence[str] = ()
    """Id of each row."""


@dataclass(frozen=True)
class JudgedWinRate:
    """Rate at which one model's answer is preferred to another's, ties counted half: shares of rows with 95 % intervals."""

    raw: Estimate
    length_controlled: Estimate
    """Win rate at equal length of the answers."""
    num_ties: int
    mean_characters: tuple[float, float]
    """Mean length of each model's answers."""


def judge_table(judge: Judge, rows: Sequence[Mapping], predictions: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Scores a shard of held-out rows, each distinct answer to a row once.

    Args:
        judge: the reward.
        rows: rows of the corpus schema.
        predictions: every model's answer to each of them.
    """
    places = [(row, model, text) for model, texts in predictions.items() for row, text in enumerate(texts)]
    distinct = list(dict.fromkeys((row, text) for row, _, text in places if unless_blank(text)))
    scores = judge.score([rows[row] for row, _ in distinct], [text or "" for _, text in distinct]) if distinct else []
    known = dict(zip(distinct, map(float, scores), strict=True))
    records = [
        {"row_id": rows[row]["row_id"], "model": model, "score": known.get((row, text))} for row, model, text in places
    ]
    return pa.Table.from_pylist(records, schema=JUDGE)


def win_rates(
    judged: JudgedAnswers, model: str, config: VoteConfig, weights: Sequence[float], rows: Sequence[int] | None = None
) -> dict[str, JudgedWinRate]:
    """Returns how often a model is preferred to each of the others, under a vote of the rewards with these weights.

    With `rows` only these places count; the scale of a reward is still that of all rows.
    """
    scales = [RewardScale.of(judged.scores[..., index]) for index in range(len(judged.rewards))]
    if rows is not None:
        judged = replace(judged, answers=[judged.answers[place] for place in rows], scores=judged.scores[list(rows)])
    lengths = np.array([[len(text or "") for text in row] for row in judged.answers], dtype=np.float64)
    mine = judged.models.index(model)
    out: dict[str, JudgedWinRate] = {}
    for other, name in enumerate(judged.models):
        if other == mine:
            continue
        pair = [mine, other]
        answers = [[row[index] for index in pair] for row in judged.answers]
        won = outcomes(judged.scores[:, pair], answers, scales, config, weights)
        rate = length_controlled(won, lengths[:, mine] - lengths[:, other])
        mean = lengths[:, pair].mean(axis=0)
        out[name] = JudgedWinRate(estimate(won), rate, int((won == 0.5).sum()), (float(mean[0]), float(mean[1])))
    return out


def outcomes(
    scores: Float[np.ndarray, "N 2 R"],
    answers: Sequence[Sequence[str | None]],
    scales: Sequence[RewardScale],
    config: VoteConfig,
    weights: Sequence[float],
) -> Float[np.ndarray, "N"]:
    """Returns 1 if the first answer wins the vote, 0 if the second does, and 0.5 for a tie: the mean of both orders.

    The vote is counted as in `select`, whose last tie-breaker is the order; equal answers, and rows without a winner, are ties.
    """
    here = vote(scores, answers, scales, config, weights).winner
    there = vote(scores[:, ::-1], [row[::-1] for row in answers], scales, config, weights).winner
    return (_first_won(here) + 1 - _first_won(there)) / 2


def _first_won(winner: np.ndarray) -> np.ndarray:
    return np.select([winner == 0, winner == 1], [1.0, 0.0], 0.5)


def length_controlled(
    won: Float[np.ndarray, "N"],
    longer_by: Float[np.ndarray, "N"],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns the win rate at equal length, by the formula above; the interval comes from resampling rows and refitting.

    Args:
        won: outcome of each row, 0 to 1.
        longer_by: length of the first answer minus length of the second, in any unit.
        num_resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the resampling.
    """
    spread = longer_by.std()
    length = np.tanh(longer_by / spread) if spread else np.zeros_like(longer_by)
    fitted = _fit(won, length, np.ones((1, won.size)), np.zeros((1, 2)))
    draws = [_fit(won, length, counts, fitted)[:, 0] for counts in resamples(won.size, num_resamples, seed)]
    bounds = np.quantile(np.concatenate(draws), [(1 - confidence) / 2, (1 + confidence) / 2])
    rate, low, high = (float(1 / (1 + np.exp(-theta))) for theta in (fitted[0, 0], *bounds))
    return Estimate(rate, low, high, won.size)


def _fit(
    won: Float[np.ndarray, "N"],
    length: Float[np.ndarray, "N"],
    counts: Float[np.ndarray, "B N"],
    start: Float[np.ndarray, "_ 2"],
) -> Float[np.ndarray, "B 2"]:
    """Fits theta and phi of every resample by Newton's method."""
    inputs = np.stack([np.ones_like(length), length])
    squares = np.stack([inputs[0], length, length**2])
    found = np.broadcast_to(start, (len(counts), 2)).copy()
    for _ in range(NUM_STEPS):
        chance = 1 / (1 + np.exp(-(found @ inputs)))
        slope = (counts * (won - chance)) @ inputs.T - RIDGE * found
        a, b, c = ((counts * chance * (1 - chance)) @ squares.T + RIDGE * np.array([1.0, 0.0, 1.0])).T
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], axis=1)
        step = (step / (a * c - b * b)[:, None]).clip(-LONGEST_STEP, LONGEST_STEP)
        found += step
        if np.abs(step).max() < TOLERANCE:
            break
    return found


def unless_blank(text: str | None) -> str | None:
    """Returns an answer, or None where it is blank."""
    return text if text and text.strip() else None
