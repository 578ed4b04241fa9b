"""Judged win rate: how often the rewards prefer one model's held-out answers to another's, raw and at equal length.

A reward scores one answer at a time, or a generative judge compares two in both orders, so no place is favoured; a tie counts one
half, so swapping sides gives exactly one minus the rate.

Length control follows length-controlled AlpacaEval (Dubois et al., arXiv 2404.04475) without its term for the difficulty of an
instruction, which needs many models: over rows i with outcome w_i (1 won, 0.5 tied, 0 lost) and difference of length d_i,

    logit P(w_i) = theta + phi * tanh(d_i / std(d)),        rate at equal length = 1 / (1 + exp(-theta)).

The interval at equal length is Student's t with a sandwich estimate of theta's error (HC2; MacKinnon and White, 1985). Fewer than
FEW_DECIDED rows that are not ties cannot fit the effect of length: then it is extended to include the interval of the raw rate,
which agrees with the exact sign test.

Legend: N held-out rows that no model refused, M models, R rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from profuser.artifacts.schemas import JUDGE
from profuser.evaluation.statistics import FEW_DECIDED, LEVEL, Estimate, win_rate
from profuser.recipe.rewards import VoteConfig
from profuser.rewards.judges import Judge, KeepsVerdicts
from profuser.rewards.verdicts import add_verdicts
from profuser.rewards.voting import RewardScale, distinct, vote

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
    """NaN if there is no answer, or if the reward does not judge the row."""
    row_ids: Sequence[str] = ()
    """Id of each row."""


@dataclass(frozen=True)
class JudgedWinRate:
    """Rate at which one model's answer is preferred to another's, ties counted half: shares of rows with 95 % intervals."""

    raw: Estimate
    length_controlled: Estimate
    """Win rate at equal length of the answers."""
    num_won: int
    num_lost: int
    p_value: float
    """Exact sign test over the rows that are not ties, against no preference."""
    mean_characters: tuple[float, float]
    """Mean length of each model's answers."""

    @property
    def num_ties(self) -> int:
        """Rows that neither model won."""
        return self.raw.num_items - self.num_won - self.num_lost


def judge_table(
    judge: Judge,
    rows: Sequence[Mapping],
    predictions: Mapping[str, Sequence[str | None]],
    keeps_verdicts: bool = False,
) -> pa.Table:
    """Scores a shard of held-out rows, each distinct answer to a row once.

    Args:
        judge: the reward.
        rows: rows of the corpus schema.
        predictions: every model's answer to each of them.
        keeps_verdicts: whether the judge is one that keeps verdicts, which are stored with the answer judged or shown first.
    """
    places = [(row, model, text) for model, texts in predictions.items() for row, text in enumerate(texts)]
    owners: dict[tuple[int, str | None], tuple[int, int]] = {}
    for index, (row, _, text) in enumerate(places):
        if unless_blank(text):
            owners.setdefault((row, text), (index, index // len(rows)))
    answered = [*owners]
    scores = judge.score([rows[row] for row, _ in answered], [text or "" for _, text in answered]) if answered else []
    known = {place: float(score) for place, score in zip(answered, scores, strict=True) if not np.isnan(score)}
    records = [
        {"row_id": rows[row]["row_id"], "model": model, "score": known.get((row, text))} for row, model, text in places
    ]
    table = pa.Table.from_pylist(records, schema=JUDGE)
    if not keeps_verdicts:
        return table
    assert isinstance(judge, KeepsVerdicts)
    return add_verdicts(table, judge.verdicts if answered else (), [*owners.values()])


def win_rates(
    judged: JudgedAnswers, model: str, config: VoteConfig, weights: Sequence[float], rows: Sequence[int] | None = None
) -> dict[str, JudgedWinRate]:
    """Returns how often a model is preferred to each of the others, under a vote of the rewards with these weights.

    A model is left out if no reward with a weight judges any row. With `rows` only these places count; the scale of a reward is
    still that of all rows.
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
        won, kept = outcomes(judged.scores[:, pair], answers, scales, config, weights)
        if not kept.any():
            continue
        won, both = won[kept], lengths[kept][:, pair]
        raw, p_value = win_rate(won)
        rate = length_controlled(won, both[:, 0] - both[:, 1])
        mean = both.mean(axis=0)
        counts = int((won == 1).sum()), int((won == 0).sum())
        out[name] = JudgedWinRate(raw, rate, *counts, p_value, (float(mean[0]), float(mean[1])))
    return out


def outcomes(
    scores: Float[np.ndarray, "N 2 R"],
    answers: Sequence[Sequence[str | None]],
    scales: Sequence[RewardScale],
    config: VoteConfig,
    weights: Sequence[float],
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """Returns 1 if the first answer wins the vote, 0 if the second does, and 0.5 for a tie; and which rows count.

    The vote is counted as in `select`, but rejects no answer: of two wrong ones the reward models may still prefer one. Equal
    answers, and rows without a single winner, are ties. A row that no reward with a weight judges does not count.
    """
    votes = vote(scores, answers, scales, config.model_copy(update={"ties": "skip"}), weights)
    winner, blank = votes.winner, np.array([row[0] is row[1] is None for row in answers], dtype=bool)
    same = np.array([len(distinct(row)) == 1 and None not in row for row in answers], dtype=bool)
    return np.select([same, winner == 0, winner == 1], [0.5, 1.0, 0.0], 0.5), votes.judged | blank


def length_controlled(won: Float[np.ndarray, "N"], longer_by: Float[np.ndarray, "N"]) -> Estimate:
    """Returns the win rate at equal length, by the formula above, with its 95 % interval.

    Args:
        won: outcome of each row: 1, 0.5 or 0.
        longer_by: length of the first answer minus length of the second, in any unit.
    """
    from scipy.special import expit, stdtrit

    spread = longer_by.std()
    length = np.tanh(longer_by / spread) if spread else np.zeros_like(longer_by)
    theta, error = _fit(won, length)
    num_decided = int((won != 0.5).sum())
    half = float(stdtrit(max(num_decided - 2, 1), (1 + LEVEL) / 2)) * error
    rate, low, high = (float(expit(end)) for end in (theta, theta - half, theta + half))
    if num_decided < FEW_DECIDED:
        raw, _ = win_rate(won)
        low, high = min(low, raw.low), max(high, raw.high)
    return Estimate(rate, low, high, won.size)


def _fit(won: Float[np.ndarray, "N"], length: Float[np.ndarray, "N"]) -> tuple[float, float]:
    """Fits theta and phi by Newton's method; returns theta and its standard error."""
    inputs, found = np.stack([np.ones_like(length), length], axis=1), np.zeros(2)
    for _ in range(NUM_STEPS):
        chance = 1 / (1 + np.exp(-(inputs @ found)))
        inverse = np.linalg.inv((inputs.T * (chance * (1 - chance))) @ inputs + RIDGE * np.eye(2))
        step = (inverse @ (inputs.T @ (won - chance) - RIDGE * found)).clip(-LONGEST_STEP, LONGEST_STEP)
        found = found + step
        if np.abs(step).max() < TOLERANCE:
            break
    chance = 1 / (1 + np.exp(-(inputs @ found)))
    leverage = chance * (1 - chance) * np.einsum("ni,ij,nj->n", inputs, inverse, inputs)
    rest = (won - chance) / np.sqrt(1 - leverage.clip(max=0.99))
    return float(found[0]), float(np.sqrt((inverse @ (inputs.T * rest**2) @ inputs @ inverse)[0, 0]))


def unless_blank(text: str | None) -> str | None:
    """Returns an answer, or None where it is blank."""
    return text if text and text.strip() else None
