"""Summarises the choice of teachers over a whole run: win rates of sources, agreement of rewards and modes, and length bias.

Chooses nothing. Legend: N corpus rows, M sources, R rewards.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from profuser.artifacts.schemas import MODES
from profuser.recipe.rewards import RewardConfig, VoteConfig
from profuser.rewards.agreement import NAN, Agreement, longer_wins, spearman
from profuser.rewards.voting import RewardScale, distinct, standardised, vote
from profuser.selection.rows import SelectionRows

LENGTH_BINS = 10


@dataclass(frozen=True)
class WinRate:
    """Win rate of one source over another on the same rows."""

    wins: int
    draws: int
    """Rows on which neither is better."""
    num_rows: int
    """Rows on which both can be compared."""

    @property
    def share(self) -> float:
        """Share of the rows on which the first is better, draws counted half, 0 to 1; NaN without rows."""
        return (self.wins + self.draws / 2) / self.num_rows if self.num_rows else NAN


@dataclass(frozen=True)
class SourceComparison:
    """Comparison of two sources."""

    first: str
    second: str
    training: WinRate
    """Rate at which the ground truth is less surprising to the first."""
    inference: WinRate
    """Rate at which the first's answer is preferred in a vote between only the two."""


@dataclass(frozen=True)
class RewardFacts:
    """Statistics of one reward model or verifier."""

    name: str
    weight: float
    num_rows: int
    """Rows with at least two different answers, which offer a choice."""
    abstained: int
    """Rows among these without a vote of this reward."""
    length_correlation: float
    """Spearman's rank correlation of an answer's bytes and its reward, over all answers; NaN if either is constant."""
    longer_wins: float
    """Share of pairs of answers of different length to one prompt in which the longer has the higher reward, ties counted half; 0.5
    is no bias. Unlike the correlation, it is not affected by prompts that call for long answers."""
    longer_pairs: int
    num_taught: int
    """Answers that teach and that it judged."""
    taught_rejected: int | None
    """Those among these that it rejects; None for a reward that rejects none."""


@dataclass(frozen=True)
class LengthBin:
    """Mean rewards of answers of similar length."""

    num_answers: int
    mean_bytes: float
    rewards: Mapping[str, float]
    """Mean reward in standard deviations, by name."""


@dataclass(frozen=True)
class SelectionFacts:
    """Statistics of the choice of teachers."""

    modes: Agreement
    """Agreement of the teachers in training mode and in inference mode."""
    duels: tuple[SourceComparison, ...]
    """Comparisons of all pairs of sources, in the order of the sources."""
    judges: tuple[RewardFacts, ...]
    agreements: tuple[Agreement, ...]
    """Agreement of every pair of rewards, over the rows with at least two different answers. Abstentions are left out."""
    lengths: tuple[LengthBin, ...]
    """Deciles of all answers by length; answers of equal length stay together, so there may be fewer than ten."""


def selection_facts(
    rows: SelectionRows,
    names: Sequence[str],
    teachers: Sequence[str],
    rewards: Sequence[RewardConfig],
    config: VoteConfig,
    scales: Sequence[RewardScale] = (),
) -> SelectionFacts:
    """Summarises how teachers were chosen.

    Args:
        rows: inputs and choices of `select`.
        names: names of the sources.
        teachers: sources that may teach; the others' answers get no votes, as in `select`.
        rewards: names and weights of the rewards.
        config: vote settings.
        scales: mean and standard deviation of each reward; by default over these rows.
    """
    scales = scales or _scales(rows)
    standard = standardised(rows.scores, scales)
    weights = np.array([reward.weight for reward in rewards])
    votable = [
        [text if name in teachers else None for name, text in zip(names, row, strict=True)] for row in rows.answers
    ]
    is_open = np.array([len(distinct(row)) > 1 for row in votable], dtype=bool)
    choices = vote(rows.scores, votable, scales, config, weights.tolist()).choices[is_open]
    num_bytes = np.array([[NAN if text is None else float(len(text.encode())) for text in row] for row in rows.answers])
    pairs = itertools.combinations(range(len(names)), 2)
    return SelectionFacts(
        modes=Agreement.of(*MODES, rows.teachers[:, 0], rows.teachers[:, 1]),
        duels=tuple(
            SourceComparison(
                names[i], names[j], _training(rows, i, j), _inference(rows, standard, i, j, weights, config.margin)
            )
            for i, j in pairs
        ),
        judges=tuple(
            _judge(reward, num_bytes, rows.scores[:, :, index], choices[:, index], rows.taught[:, index])
            for index, reward in enumerate(rewards)
        ),
        agreements=tuple(
            Agreement.of(rewards[i].name, rewards[j].name, choices[:, i], choices[:, j])
            for i, j in itertools.combinations(range(len(rewards)), 2)
        ),
        lengths=tuple(_length_bins(num_bytes, standard, [reward.name for reward in rewards])),
    )


def facts_by_category(
    rows: SelectionRows,
    names: Sequence[str],
    teachers: Sequence[str],
    rewards: Sequence[RewardConfig],
    config: VoteConfig,
) -> dict[str, SelectionFacts]:
    """Returns the same facts for each category; rewards keep the scale that they have over all rows, as in `select`."""
    scales = _scales(rows)
    return {
        name: selection_facts(part, names, teachers, rewards, config, scales)
        for name, part in rows.by_category().items()
    }


def _scales(rows: SelectionRows) -> list[RewardScale]:
    return [RewardScale.of(rows.scores[:, :, judge]) for judge in range(rows.scores.shape[2])]


def _judge(
    reward: RewardConfig,
    num_bytes: Float[np.ndarray, "N M"],
    scores: Float[np.ndarray, "N M"],
    choices: Int[np.ndarray, "n"],
    taught: Float[np.ndarray, "N"],
) -> RewardFacts:
    """Returns one reward's statistics, from its scores of all answers and of those that teach, and its choices where it had one."""
    share, pairs = longer_wins(num_bytes, scores)
    correlation = spearman(num_bytes.ravel(), scores.ravel())
    abstained, taught, limit = int((choices < 0).sum()), taught[~np.isnan(taught)], reward.rejects_up_to
    rejected = None if limit is None else int((taught <= limit).sum())
    numbers = len(choices), abstained, correlation, share, pairs, len(taught), rejected
    return RewardFacts(reward.name, reward.weight, *numbers)


def _training(rows: SelectionRows, i: int, j: int) -> WinRate:
    """Compares two sources on the rows that neither refused; the one less surprised by the ground truth is better."""
    lead = rows.surprise[:, j] - rows.surprise[:, i]
    return _win_rate(lead[~np.isnan(lead)])


def _inference(
    rows: SelectionRows,
    standard: Float[np.ndarray, "N M R"],
    i: int,
    j: int,
    weights: Float[np.ndarray, "R"],
    margin: float,
) -> WinRate:
    """Compares two sources by a vote between them; a tie goes to the higher mean standardised reward, equal answers are a draw."""
    known = np.array([row[i] is not None and row[j] is not None for row in rows.answers], dtype=bool)
    known &= ~np.isnan(standard[:, [i, j]]).all(axis=(1, 2))
    differ = np.array([row[i] != row[j] for row in rows.answers], dtype=bool)[known]
    lead = np.nan_to_num(standard[known, i] - standard[known, j])
    votes = (((lead > margin).astype(float) - (lead < -margin)) @ weights).round(9)
    better = np.where(votes != 0, votes, (lead * weights).mean(axis=1))
    return _win_rate(np.where(differ, better, 0.0))


def _win_rate(lead: Float[np.ndarray, "n"]) -> WinRate:
    return WinRate(int((lead > 0).sum()), int((lead == 0).sum()), len(lead))


def _length_bins(
    num_bytes: Float[np.ndarray, "N M"], standard: Float[np.ndarray, "N M R"], names: Sequence[str]
) -> list[LengthBin]:
    known = ~np.isnan(num_bytes) & ~np.isnan(standard).all(axis=2)
    lengths, rewards = num_bytes[known], standard[known]
    if not len(lengths):
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, lengths, side="right")
    out = []
    for index in np.unique(bins):
        inside = bins == index
        own = [column[~np.isnan(column)] for column in rewards[inside].T]
        means = {name: float(part.mean()) if len(part) else NAN for name, part in zip(names, own, strict=True)}
        out.append(LengthBin(int(inside.sum()), float(lengths[inside].mean()), means))
    return out
