"""Who teaches what: for every corpus row the teacher of each mode, from what the sources said and how they were judged.

Legend: N rows of a shard, M sources, S answers per source, R rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.artifacts.schemas import MODES
from profuser.engines.signal_tables import candidate_answers
from profuser.errors import ArtifactError
from profuser.recipe.selecting import AVERAGE, SelectConfig
from profuser.rewards.voting import RewardScale, vote
from profuser.selection.advantage import min_ce, training_advantage
from profuser.signals.codec import from_list_column

LIGHT_COLUMNS = (
    "row_id",
    "refused",
    "response_bytes",
    "training_nats",
    "training_ids",
    "answers",
    "finish_reasons",
)
"""What the choice needs to know of what a source said."""


@dataclass(frozen=True)
class Choice:
    """One training example before its distributions are carried over."""

    row: int
    mode: str
    teacher: int
    """The source that is best in this mode; in training mode with `training_teacher: average` the others teach beside it."""
    sample: int
    """Which of the teacher's answers; 0 in training mode."""
    advantages: list[float]
    response: str
    cut: bool
    """The answer was cut by its length limit: no end of turn follows."""


@dataclass(frozen=True)
class Chooser:
    """Chooses teachers for the rows of a shard."""

    names: Sequence[str]
    """Of the M sources."""
    teachers: Sequence[str]
    """Those that may teach."""
    tokens: Sequence[TokenBytes]
    """Of each source's tokenizer."""
    config: SelectConfig
    scales: Sequence[RewardScale]
    """Of each reward over the whole run."""
    weights: Sequence[float] | None = None
    """What the vote of each reward counts; by default all count the same."""
    num_samples: int = 1
    """S."""

    def choose(
        self, corpus: pa.Table, collected: Sequence[pa.Table], rewards: Sequence[pa.Table]
    ) -> tuple[list[Choice], dict[str, float]]:
        """Chooses for both modes.

        Args:
            corpus: the rows.
            collected: what each source says of them, `[M]`, at least the `LIGHT_COLUMNS`.
            rewards: what each reward says of the sources' answers, `[R]`.

        Returns:
            The choices, and counts: rows, those that were left out, rows that a source misspells, wins (where all teach together,
            the win is that of `average`).

        Raises:
            ArtifactError: the tables are not of the same rows.
        """
        _check_same_rows(corpus, [*collected, *rewards])
        rows = corpus.to_pylist()
        counts: dict[str, float] = {"rows": len(rows)}
        choices = self._training(rows, collected, counts) + self._inference(collected, rewards)
        if self.config.incomplete_rows == "drop":
            incomplete = _incomplete(collected)
            counts["incomplete_rows"] = int(incomplete.sum())
            choices = [choice for choice in choices if not incomplete[choice.row]]
        taught = [(choice.mode, self.teacher_of(choice)) for choice in choices]
        for mode in MODES:
            for name in (*self.names, *([AVERAGE] if self.averages else [])):
                counts[f"wins/{mode}/{name}"] = taught.count((mode, name))
        counts["examples"] = len(choices)
        return choices, counts

    @property
    def averages(self) -> bool:
        """Whether all sources together teach the ground truth."""
        return self.config.training_teacher == AVERAGE

    def teacher_of(self, choice: Choice) -> str:
        """Name of the source that teaches an example, or `average`."""
        return AVERAGE if self.averages and choice.mode == "training" else self.names[choice.teacher]

    @property
    def allowed(self) -> Bool[np.ndarray, "M"]:
        """Which sources may teach."""
        return np.array([name in self.teachers for name in self.names])

    def _training(self, rows: list[dict], collected: Sequence[pa.Table], counts: dict[str, float]) -> list[Choice]:
        """Min-CE over the sources that took the row, and whose tokens spell the ground truth."""
        nats = np.stack([t["training_nats"].to_numpy(zero_copy_only=False).astype(np.float64) for t in collected], 1)
        num_tokens = np.stack([from_list_column(t["training_ids"]).lengths for t in collected], 1)
        num_bytes = collected[0]["response_bytes"].to_numpy().astype(np.int64)
        for source, table in enumerate(collected):
            taken = np.flatnonzero(~np.isnan(nats[:, source]))
            ids = from_list_column(table["training_ids"].take(pa.array(taken)))
            # A normaliser that changes text scores another response than the ground truth.
            wrong = misspelt(self.tokens[source], ids, [rows[row]["response"].encode() for row in taken.tolist()])
            nats[taken[sorted(wrong)], source] = np.nan
            counts[f"misspelt/{self.names[source]}"] = len(wrong)
        counts["misspelt_by_sources"] = sum(counts[f"misspelt/{name}"] for name in self.names)
        advantages = training_advantage(nats, num_tokens, num_bytes, self.config.training_metric)
        teachers = min_ce(np.where(self.allowed, advantages, np.nan))
        return [
            Choice(row, "training", int(teacher), 0, advantages[row].tolist(), rows[row]["response"], False)
            for row, teacher in enumerate(teachers)
            if teacher >= 0
        ]

    def _inference(self, collected: Sequence[pa.Table], rewards: Sequence[pa.Table]) -> list[Choice]:
        """The answer that most rewards vote for."""
        allowed = np.repeat(self.allowed, self.num_samples)
        answers = [
            [answer if may else None for answer, may in zip(row, allowed, strict=True)]
            for row in candidate_answers(collected, self.num_samples)
        ]
        scores = np.stack([np.array(table["scores"].to_pylist(), dtype=np.float64) for table in rewards], axis=2)
        result = vote(scores, answers, self.scales, self.config.vote, self.weights)
        reasons = [table["finish_reasons"].to_pylist() for table in collected]
        out = []
        for row, winner in enumerate(result.winner.tolist()):
            if winner >= 0:
                teacher, sample = divmod(winner, self.num_samples)
                cut = reasons[teacher][row][sample] == "length"
                votes, text = result.votes[row].tolist(), answers[row][winner] or ""
                out.append(Choice(row, "inference", teacher, sample, votes, text, cut))
        return out


def _incomplete(collected: Sequence[pa.Table]) -> Bool[np.ndarray, "N"]:
    """Rows that at least one source refused."""
    refused = [table["refused"].is_valid().to_numpy() for table in collected]
    return np.logical_or.reduce(refused)


def _check_same_rows(corpus: pa.Table, others: Sequence[pa.Table]) -> None:
    for table in others:
        if not table["row_id"].equals(corpus["row_id"]):
            raise ArtifactError("the shards to join are not of the same rows: an input was made from another corpus")


def add_counts(counts: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds numbers to those of the same name."""
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value
