"""Scores every source's answers to a shard of rows with one reward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from profuser.artifacts.schemas import REWARDS
from profuser.corpus.thinking import without_thinking
from profuser.engines.signal_tables import candidate_answers
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.judges import GivesReasons, Judge, KeepsVerdicts
from profuser.rewards.kinds import kind_of
from profuser.rewards.verdicts import add_verdicts


@dataclass(frozen=True)
class AnswerScorer:
    """Scores answers with one reward: one score per answer, NaN for a missing answer and for a row that it does not judge."""

    reward: RewardConfig
    judge: Judge
    num_samples: int
    """Answers per row and source."""
    keeps: Sequence[bool]
    """Per source, whether its answers contain its thinking, which is not judged."""

    def score(
        self, corpus: pa.Table, collected: Sequence[pa.Table], begins: Callable[[int], None] = lambda num_answers: None
    ) -> tuple[pa.Table, dict[str, float]]:
        """Returns a shard's scores as a table of the rewards schema, and its counts.

        Args:
            corpus: rows of the corpus schema.
            collected: per source, the column `answers` to the same rows.
            begins: called with the number of answers before they are scored.
        """
        rows = corpus.to_pylist()
        answers = candidate_answers(collected, self.num_samples)
        scores = np.full((len(rows), len(collected) * self.num_samples), math.nan)
        places = [(row, place) for row, texts in enumerate(answers) for place, text in enumerate(texts) if text]
        if places:
            begins(len(places))
            texts = [self._judged(answers[row][place] or "", place) for row, place in places]
            scores[tuple(zip(*places, strict=True))] = self.judge.score([rows[row] for row, _ in places], texts)
        table = pa.table({"row_id": [r["row_id"] for r in rows], "scores": list(scores)}, schema=REWARDS)
        judged = int((~np.isnan(scores)).sum())
        foreign = sum(not self.reward.judges(rows[row]["category"]) for row, _ in places)
        counts: dict[str, float] = {"rows": len(rows), "answers": judged, "answers_not_judged": foreign}
        refused = len(places) - judged - foreign
        counts |= {"refused": refused} if refused else {}
        if kind_of(self.reward).keeps_verdicts:
            assert isinstance(self.judge, KeepsVerdicts)
            table = add_verdicts(table, self.judge.verdicts if places else (), places)
            counts |= self.judge.counts if places else {}
        return table, counts | (dict(self.judge.reasons) if places and isinstance(self.judge, GivesReasons) else {})

    def _judged(self, answer: str, place: int) -> str:
        """Returns an answer as it is judged: without the thinking that the recipe keeps."""
        return without_thinking(answer, inside=True) if self.keeps[place // self.num_samples] else answer
