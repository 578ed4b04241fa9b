"""Compares the arms' held-out answers with the target's before fusion, by the recipe's verifiers. Loads no model.

Legend: S seeds of an arm, N held-out rows that no model refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from profuser.errors import ProfuserError, one_line
from profuser.evaluation.judged import judge_table, unless_blank
from profuser.evaluation.statistics import Estimate, estimate, win_rate
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.kinds import kind_of, load_judge

Answers = Sequence[Sequence[str | None]]
"""Answers to the rows, `[S][N]`."""


@dataclass(frozen=True)
class AnswerWinRates:
    """Win rates of answers by verifiers."""

    rates: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)
    """Share of rows on which an answer scores higher than the baseline's, by verifier and name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Verifiers that scored nothing, with the reason."""


def answer_win_rates(
    verifiers: Sequence[RewardConfig], rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Answers], baseline: str
) -> AnswerWinRates:
    """Compares answers with the baseline's; ties count half.

    A blank answer loses against any other. Rows that a verifier does not judge do not count; a pair without any is left out.

    Args:
        verifiers: rewards without a model.
        rows: held-out rows of the corpus schema.
        answers: of every model and arm, to these rows in order.
        baseline: the name that all others are compared with; it has one seed.
    """
    rates: dict[tuple[str, str], Estimate] = {}
    left_out: dict[str, str] = {}
    for verifier in verifiers:
        if kind_of(verifier).runs_answers:
            left_out[verifier.name] = "it executes the answers, which only its own stage does"
            continue
        try:
            scores = _scores(verifier, rows, answers)
        except ProfuserError as error:
            left_out[verifier.name] = one_line(error)
            continue
        judged = np.array([verifier.judges(row["category"]) for row in rows], dtype=bool)
        for name in answers:
            rate = _rate(scores[name], scores[baseline][0], judged) if name != baseline else None
            if rate is not None:
                rates[verifier.name, name] = rate
    return AnswerWinRates(rates, left_out)


def _scores(
    verifier: RewardConfig, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Answers]
) -> dict[str, Float[np.ndarray, "_ N"]]:
    """Returns a verifier's scores of all answers: minus infinity where one is blank, NaN where the verifier does not judge."""
    names = [(name, seed) for name, seeds in answers.items() for seed in range(len(seeds))]
    texts = {f"{name}/{seed}": answers[name][seed] for name, seed in names}
    table = judge_table(load_judge(verifier), rows, texts)
    found = np.array(table["score"].to_pylist(), dtype=np.float64).reshape(len(names), len(rows))
    blank = np.array([[unless_blank(text) is None for text in own] for own in texts.values()], dtype=bool)
    found = np.where(blank, -np.inf, found)
    return {name: found[[place for place, (other, _) in enumerate(names) if other == name]] for name in answers}


def _rate(
    mine: Float[np.ndarray, "S N"], other: Float[np.ndarray, "N"], judged: Bool[np.ndarray, "N"]
) -> Estimate | None:
    """Returns the win rate with its interval, paired by row; with several seeds it includes their spread."""
    kept = judged & ~np.isnan(other) & ~np.isnan(mine).any(axis=0)
    if not kept.any():
        return None
    won = np.where(mine > other, 1.0, np.where(mine < other, 0.0, 0.5))[:, kept]
    return win_rate(won[0])[0] if len(won) == 1 else estimate(won)
