"""Scores answers with a generative judge, pointwise or pairwise.

Pointwise, an answer's score is the expected value of its grade under the judge's probabilities, made to sum to 1 over the grades
(G-Eval, arXiv 2303.16634). Pairwise, every two different answers to a row are compared in both orders, and the two probabilities
that one is preferred are averaged, so that a preference for a place cancels. An answer's score is its mean probability of being
preferred to the others: 0.5 where all tie, and where there is no other. Equal answers to a row are judged once.

Legend: N answers of a call.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from profuser.corpus.turns import Message
from profuser.engines.loop import EngineLoop
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.rewards.rubrics import conversation, with_rubric
from profuser.rewards.verdicts import (
    PairOutcome,
    Reply,
    VerdictCounts,
    VerdictRow,
    expected,
    pair_outcome,
    verdict_masses,
)

Conversation = tuple[Message, ...]
Question = tuple[int, int | None]
"""Index of the answer that is judged, or shown first; and of the one that is shown second."""


@runtime_checkable
class Asker(Protocol):
    """Puts questions to a judge's model."""

    loop: EngineLoop | None
    """Loop of the engine that runs it; None for a server."""

    def ask(self, conversations: Sequence[Conversation], answered: Callable[[], None]) -> list[Reply]:
        """Returns the replies, in order; `answered` is called as each arrives."""
        ...


class LlmJudge:
    """A judge that asks a language model, see `Judge` and `KeepsVerdicts`."""

    def __init__(self, config: LlmJudgeConfig, asker: Asker):
        self.config, self.asker, self.loop = with_rubric(config), asker, asker.loop
        self.answered: Callable[[int], None] = lambda number: None
        self.verdicts: list[VerdictRow] = []
        self.counts: dict[str, float] = {}

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`. NaN for an answer without a verdict; raises UserError if the rubric cannot be rendered."""
        groups: dict[str, dict[str, int]] = {}
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            groups.setdefault(row["row_id"], {}).setdefault(answer, place)
        questions = [question for places in groups.values() for question in self._questions([*places.values()])]
        self.verdicts = self._ask(rows, answers, questions)
        outcomes: list[PairOutcome] = []
        found = np.full(len(answers), math.nan)
        known = {(each.first, each.second): each.score for each in self.verdicts}
        for places in groups.values():
            if self.config.mode == "pointwise":
                found[[*places.values()]] = [known[place, None] for place in places.values()]
            else:
                self._compare([*places.values()], known, outcomes, found)
        self.counts = VerdictCounts(self.verdicts, outcomes).counts
        return found[[groups[row["row_id"]][answer] for row, answer in zip(rows, answers, strict=True)]]

    def _questions(self, places: Sequence[int]) -> list[Question]:
        """Returns what is asked about the different answers to one row."""
        if self.config.mode == "pointwise":
            return [(place, None) for place in places]
        return list(itertools.permutations(places, 2))

    def _ask(
        self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str], questions: Sequence[Question]
    ) -> list[VerdictRow]:
        shown = [[answers[place] for place in question if place is not None] for question in questions]
        asked = [
            conversation(self.config, rows[first], texts) for (first, _), texts in zip(questions, shown, strict=True)
        ]
        replies = self.asker.ask(asked, _shares(len(answers), len(questions), self.answered)) if questions else []
        values = self.config.grades if self.config.mode == "pointwise" else (1.0, 0.0)
        found = []
        for (first, second), messages, reply in zip(questions, asked, replies, strict=True):
            masses = verdict_masses(reply, self.config.verdicts)
            found.append(VerdictRow(first, second, messages, reply, masses, expected(masses, values)))
        return found

    def _compare(
        self,
        places: Sequence[int],
        known: Mapping[Question, float],
        outcomes: list[PairOutcome],
        found: Float[np.ndarray, "N"],
    ) -> None:
        """Adds the outcomes of a row's pairs, and sets the scores of its answers."""
        wins: dict[int, list[float]] = {place: [] for place in places}
        for one, other in itertools.combinations(places, 2):
            outcome = pair_outcome(known[one, other], 1 - known[other, one], self.config.tie_margin)
            outcomes.append(outcome)
            if not math.isnan(outcome.preference):
                wins[one].append(outcome.preference)
                wins[other].append(1 - outcome.preference)
        for place, won in wins.items():
            found[place] = np.mean(won) if won else 0.5 if len(places) == 1 else math.nan


def _shares(num_answers: int, num_questions: int, answered: Callable[[int], None]) -> Callable[[], None]:
    """Returns a function to call for each reply, which reports the same share of the answers as scored."""
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        if new := num_answers * done // num_questions - num_answers * (done - 1) // num_questions:
            answered(new)

    return one
