"""Who teaches what: the shard-local join of all sources, the choice per mode, and the teacher's distributions carried over.

Legend: N rows of a shard, M sources, R rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from profuser.advantage import min_ce, training_advantage
from profuser.alignment.matching import AlignmentRules, coverage
from profuser.alignment.spans import byte_spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals, TransportedRows, transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.corpus import Message, encode_example
from profuser.errors import ArtifactError
from profuser.recipe.models import SelectConfig, TemplateConfig
from profuser.rewards.voting import RewardScale, vote
from profuser.schemas import MODES, select_schema
from profuser.signals.codec import from_columns, from_list_column, to_columns
from profuser.signals.ragged import Ragged


@dataclass(frozen=True)
class Target:
    """The target's tokenizer and how it is prompted."""

    tokenizer: Any
    tokens: TokenBytes
    template: TemplateConfig


@dataclass(frozen=True)
class Choice:
    """One training example before its distributions are carried over."""

    row: int
    mode: str
    teacher: int
    advantages: list[float]
    response: str
    cut: bool
    """The answer was cut by its length limit: no end of turn follows."""


class Selector:
    """Chooses teachers for shards and carries their distributions to the target.

    Args:
        names: of the sources, in order.
        teachers: those that may teach.
        projections: from each source's vocabulary to the target's.
        target: the target's tokenizer.
        config: metric, votes, alignment rules.
        scales: of each reward over the whole run.
        top_k: log-probabilities per position.
        weights: what the vote of each reward counts; by default all count the same.
    """

    def __init__(
        self,
        names: Sequence[str],
        teachers: Sequence[str],
        projections: Sequence[VocabProjection],
        target: Target,
        config: SelectConfig,
        scales: Sequence[RewardScale],
        top_k: int,
        weights: Sequence[float] | None = None,
    ):
        self.names, self.projections, self.target = list(names), list(projections), target
        self.allowed = np.array([name in teachers for name in names])
        self.config, self.scales, self.weights, self.top_k = config, list(scales), weights, top_k
        self.rules = AlignmentRules.only(config.alignment_rules)

    def select(
        self, corpus: pa.Table, collected: Sequence[pa.Table], rewards: Sequence[pa.Table]
    ) -> tuple[pa.Table, dict[str, float]]:
        """Makes the training examples of a shard.

        Args:
            corpus: the rows.
            collected: what each source says of them, `[M]`.
            rewards: what each reward says of the sources' answers, `[R]`.

        Returns:
            A table of the select schema, and counts: rows, examples, wins, alignment rules.

        Raises:
            ArtifactError: the tables are not of the same rows.
        """
        _check_same_rows(corpus, [*collected, *rewards])
        rows = corpus.to_pylist()
        counts: dict[str, float] = {"rows": len(rows)}
        choices = self._training(rows, collected, counts) + self._inference(rows, collected, rewards, counts)
        counts["examples"] = len(choices)
        tables = []
        for teacher in range(len(self.names)):
            for mode in MODES:
                chosen = [c for c in choices if c.teacher == teacher and c.mode == mode]
                _add(counts, {f"wins/{mode}/{self.names[teacher]}": len(chosen)})
                if chosen:
                    tables.append(self._carry_over(rows, chosen, collected[teacher], teacher, counts))
        schema = self.schema
        return (pa.concat_tables(tables) if tables else schema.empty_table()), counts

    @property
    def schema(self) -> pa.Schema:
        """The select schema for the target's vocabulary."""
        return select_schema(self.target.tokens.vocab_size)

    def _training(self, rows: list[dict], collected: Sequence[pa.Table], counts: dict[str, float]) -> list[Choice]:
        """Min-CE over the sources that took the row, and whose tokens spell the ground truth."""
        nats = np.stack([t["training_nats"].to_numpy(zero_copy_only=False).astype(np.float64) for t in collected], 1)
        num_tokens = np.stack([from_list_column(t["training_ids"]).lengths for t in collected], 1)
        num_bytes = collected[0]["response_bytes"].to_numpy().astype(np.int64)
        for source, table in enumerate(collected):
            texts = [
                None if refused else row["response"]
                for row, refused in zip(rows, np.isnan(nats[:, source]), strict=True)
            ]
            nats[self._misspelt(source, table, "training", texts, counts), source] = np.nan
        advantages = training_advantage(nats, num_tokens, num_bytes, self.config.training_metric)
        teachers = min_ce(np.where(self.allowed, advantages, np.nan))
        return [
            Choice(row, "training", int(teacher), advantages[row].tolist(), rows[row]["response"], False)
            for row, teacher in enumerate(teachers)
            if teacher >= 0
        ]

    def _inference(
        self,
        rows: list[dict],
        collected: Sequence[pa.Table],
        rewards: Sequence[pa.Table],
        counts: dict[str, float],
    ) -> list[Choice]:
        """The answer that most rewards vote for, among those that their tokens spell."""
        texts = [table["inference_text"].to_pylist() for table in collected]
        for source, table in enumerate(collected):
            for row in self._misspelt(source, table, "inference", texts[source], counts):
                texts[source][row] = None
        answers = [
            [texts[source][row] if self.allowed[source] else None for source in range(len(texts))]
            for row in range(len(rows))
        ]
        scores = np.stack([np.array(table["scores"].to_pylist(), dtype=np.float64) for table in rewards], axis=2)
        result = vote(scores, answers, self.scales, self.config.vote, self.weights)
        reasons = [table["finish_reason"].to_pylist() for table in collected]
        out = []
        for row, teacher in enumerate(result.winner.tolist()):
            if teacher >= 0:
                cut = reasons[teacher][row] == "length"
                votes = result.votes[row].tolist()
                out.append(Choice(row, "inference", teacher, votes, answers[row][teacher] or "", cut))
        return out

    def _misspelt(
        self, source: int, table: pa.Table, mode: str, texts: list[str | None], counts: dict[str, float]
    ) -> list[int]:
        """Rows whose tokens spell other bytes than the response (a lossy normaliser): refused for this source, and counted."""
        given = [row for row, text in enumerate(texts) if text is not None]
        ids = from_list_column(table[f"{mode}_ids"].take(pa.array(given, pa.int64())))
        spans = byte_spans(self.projections[source].source, ids, [(texts[row] or "").encode() for row in given])
        _add(counts, {f"misspelt/{mode}/{self.names[source]}": len(spans.refused)})
        return [given[place] for place in sorted(spans.refused)]

    def _carry_over(
        self, rows: list[dict], choices: list[Choice], table: pa.Table, teacher: int, counts: dict[str, float]
    ) -> pa.Table:
        """The examples of one teacher and mode, with its distributions in the target's vocabulary."""
        mode = choices[0].mode
        part = table.take([choice.row for choice in choices])
        topk = from_columns(part, f"{mode}_topk", self.top_k, self.projections[teacher].source.vocab_size)
        logprobs = from_list_column(part[f"{mode}_logprobs"])
        signals = SourceSignals(from_list_column(part[f"{mode}_ids"]), logprobs.values, topk.topk)
        encoded = [self._encode(rows[choice.row], choice) for choice in choices]
        target_ids = Ragged.from_rows([response for _, response in encoded], dtype=np.int64)
        responses = [choice.response.encode() for choice in choices]
        carried = transport_rows(signals, target_ids, responses, self.projections[teacher], self.rules, self.top_k)
        for name, number in coverage(carried.rules.values).items():
            _add(counts, {f"rule/{name}": number, f"alignment/{self.names[teacher]}/{name}": number})
        _add(counts, {"not_aligned": len(carried.refused), "tokens": len(target_ids.values)})
        return self._table(rows, choices, encoded, carried, teacher)

    def _encode(self, row: dict, choice: Choice) -> tuple[list[int], list[int]]:
        messages = [Message(m["role"], m["content"]) for m in row["messages"]]
        example = encode_example(self.target.tokenizer, messages, choice.response, self.target.template)
        response = example.response_ids[:-1] if choice.cut else example.response_ids
        return example.prompt_ids, response

    def _table(
        self,
        rows: list[dict],
        choices: list[Choice],
        encoded: list[tuple[list[int], list[int]]],
        carried: TransportedRows,
        teacher: int,
    ) -> pa.Table:
        columns: dict[str, Any] = {
            "row_id": [rows[c.row]["row_id"] for c in choices],
            "mode": [c.mode for c in choices],
            "category": [rows[c.row]["category"] for c in choices],
            "teacher": [self.names[teacher]] * len(choices),
            "advantages": [c.advantages for c in choices],
            "prompt_ids": [prompt for prompt, _ in encoded],
            "response_ids": [response for _, response in encoded],
            **to_columns("topk", carried.topk, self.target.tokens.vocab_size),
            "rules": [carried.rules.row(index) for index in range(len(choices))],
        }
        return pa.table(
            {f.name: c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in self.schema},
            schema=self.schema,
        )


def _check_same_rows(corpus: pa.Table, others: Sequence[pa.Table]) -> None:
    for table in others:
        if not table["row_id"].equals(corpus["row_id"]):
            raise ArtifactError("the shards to join are not of the same rows: an input was made from another corpus")


def _add(counts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value
