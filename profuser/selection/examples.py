"""Builds training examples from choices: transports the teacher's distributions along each response to the target's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from profuser.alignment.averaging import average_rows, spread_rows
from profuser.alignment.matching import coverage
from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals, TransportedRows, transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts.schemas import MODES, ON_POLICY, PAIR, select_schema
from profuser.corpus import EncodedExample, Message, Refusal, encode_examples
from profuser.engines.signal_tables import read_answer_signals, read_signals
from profuser.errors import ArtifactError
from profuser.recipe.template import TemplateConfig
from profuser.selection.teachers import Choice, Chooser, add_counts
from profuser.signals.codec import RaggedTopK, TopK, to_columns
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules


@dataclass(frozen=True)
class EncodedChoice:
    """A choice encoded in the target's tokens."""

    choice: Choice
    prompt_ids: list[int]
    response_ids: list[int]
    refused: str | None = None
    """Why the target's template does not accept the conversation; there are no tokens then."""


@dataclass(frozen=True)
class Target:
    """The target's tokenizer and prompt template."""

    tokenizer: Any
    tokens: TokenBytes
    template: TemplateConfig

    def encode(self, rows: Sequence[dict], choices: Sequence[Choice]) -> list[EncodedChoice]:
        """Encodes choices in the target's tokens; a truncated answer does not end its turn."""
        texts = [
            ([Message(m["role"], m["content"]) for m in rows[choice.row]["messages"]], choice.response)
            for choice in choices
        ]
        generated = [choice.mode != "training" for choice in choices]
        found = encode_examples(self.tokenizer, texts, self.template, generated)
        return [_encoded(choice, one) for choice, one in zip(choices, found, strict=True)]


def _encoded(choice: Choice, one: EncodedExample | Refusal) -> EncodedChoice:
    if isinstance(one, Refusal):
        return EncodedChoice(choice, [], [], one.reason)
    return EncodedChoice(choice, one.prompt_ids, one.response_ids[:-1] if choice.cut else one.response_ids)


class Selector:
    """Builds the training examples of shards.

    Args:
        chooser: chooses the teachers.
        projections: from each source's vocabulary to the target's; unused for answers with a vocabulary per row.
        target: the target's tokenizer.
        top_k: candidates per position, of the sources' signals and of the examples.
    """

    def __init__(self, chooser: Chooser, projections: Sequence[VocabProjection], target: Target, top_k: int):
        self.chooser, self.projections, self.target, self.top_k = chooser, list(projections), target, top_k
        self.rules = AlignmentRules.only(chooser.config.alignment_rules)

    def select(
        self,
        corpus: pa.Table,
        collected: Sequence[pa.Table],
        rewards: Sequence[pa.Table],
        lazy: Sequence[pa.Table] | None = None,
        own: pa.Table | None = None,
    ) -> tuple[pa.Table, dict[str, float]]:
        """Builds the training examples of a shard.

        Args:
            corpus: corpus rows of the shard.
            collected: each source's signals for them, `[M]`.
            rewards: each reward's scores of the sources' answers, `[R]`.
            lazy: if the first pass kept no distributions, those of the chosen rows, `[M]`, in the signals schema.
            own: the target's answers in a later round, as in `Chooser.choose`.

        Returns:
            A table of the select schema, and counts: those of `Chooser.choose`, and tokens by alignment rule and source.

        Raises:
            ArtifactError: the tables do not have the same rows, or `lazy` lacks a chosen row.
        """
        choices, counts = self.chooser.choose(corpus, collected, rewards, own)
        rows = corpus.to_pylist()
        examples = self._encode(rows, [one for one in choices if one.mode in MODES], counts)
        tables = []
        if pairs := self._pairs(rows, [one for one in choices if one.mode in PAIR], counts):
            tables.append(pairs)
        if self.chooser.averages and (chosen := [one for one in examples if one.choice.mode == "training"]):
            examples = [one for one in examples if one.choice.mode != "training"]
            may = np.broadcast_to(self.chooser.allowed, (len(chosen), len(collected)))
            tables.append(self._table(rows, chosen, self._average(rows, chosen, may, collected, None, counts)))
        answers, read = self._on_policy(rows, [one for one in choices if one.mode == ON_POLICY], lazy or (), counts)
        if self.chooser.averages_own and answers:
            tables.append(self._table(rows, answers, self._average(rows, answers, read, collected, lazy, counts)))
        else:
            examples += answers
        for teacher in range(len(self.chooser.names)):
            for mode in (*MODES, ON_POLICY):
                chosen = [one for one in examples if one.choice.teacher == teacher and one.choice.mode == mode]
                if chosen:
                    parts = [one.choice for one in chosen]
                    found = self._signals(rows, parts, collected[teacher], lazy[teacher] if lazy else None)
                    transported = self._transport(teacher, *found, chosen, counts)
                    tables.append(self._table(rows, chosen, transported))
                    _count_tokens(transported, counts)
        return (pa.concat_tables(tables) if tables else self.schema.empty_table()), counts

    @property
    def schema(self) -> pa.Schema:
        """The select schema for the target's vocabulary."""
        return select_schema(self.target.tokens.vocab_size)

    def _signals(
        self, rows: list[dict], choices: list[Choice], collected: pa.Table, lazy: pa.Table | None
    ) -> tuple[SourceSignals, VocabProjection]:
        """Returns one teacher's signals along the responses of one mode, and the projection of their vocabulary."""
        mode, projection = choices[0].mode, self.projections[choices[0].teacher]
        vocab_size = projection.source.vocab_size
        if lazy is None:
            samples = [choice.sample for choice in choices]
            part = collected.take([choice.row for choice in choices])
            if mode == "inference" and "answer_vocabulary" in collected.column_names:
                signals, tokens = read_answer_signals(part, samples, self.top_k)
                return signals, projection.of(tokens)
            return read_signals(part, mode, samples, vocab_size, self.top_k), projection
        keys = zip(lazy["row_id"].to_pylist(), lazy["mode"].to_pylist(), strict=True)
        places = {key: place for place, key in enumerate(keys)}
        wanted = [(rows[choice.row]["row_id"], mode) for choice in choices]
        missing = [row_id for row_id, _ in wanted if (row_id, mode) not in places]
        if missing:
            raise ArtifactError(
                f"signals of {self.chooser.names[choices[0].teacher]}: row {missing[0]} is missing, although the source was "
                "chosen to teach it; rebuild them with --redo signals"
            )
        part = lazy.take([places[key] for key in wanted])
        return read_signals(part, "response", [0] * len(wanted), vocab_size, self.top_k), projection

    def _average(
        self,
        rows: list[dict],
        examples: list[EncodedChoice],
        may: Bool[np.ndarray, "E M"],
        collected: Sequence[pa.Table],
        lazy: Sequence[pa.Table] | None,
        counts: dict[str, float],
    ) -> TransportedRows:
        """Returns the mean distributions of several sources along E examples of one mode.

        Args:
            rows: corpus rows of the shard.
            examples: the examples.
            may: which of the M sources teach which example; of the ground truth, those do not that refused it.
            collected: each source's signals for the rows.
            lazy: their second pass, if the first kept no distributions.
            counts: positions by rule are added to it.
        """
        offsets = response_ids(examples).offsets
        advantages = np.array([one.choice.advantages for one in examples])
        teaches = may if lazy else may & ~np.isnan(advantages)
        # A source without a rank comes last, and ties go to the first source, as in Min-CE.
        ranks = np.where(teaches, advantages, np.nan).argsort(axis=1, kind="stable").argsort(axis=1)
        parts, sources = [], np.flatnonzero(teaches.any(axis=0))
        for source in sources.tolist():
            taken = np.flatnonzero(teaches[:, source])
            own = [examples[place] for place in taken]
            choices = [replace(one.choice, teacher=source) for one in own]
            found = self._signals(rows, choices, collected[source], lazy[source] if lazy else None)
            parts.append(spread_rows(self._transport(source, *found, own, counts), taken, offsets))
        averaged = average_rows(parts, ranks[:, sources], self.top_k)
        _count_tokens(averaged, counts)
        return averaged

    def _transport(
        self,
        source: int,
        signals: SourceSignals,
        projection: VocabProjection,
        examples: list[EncodedChoice],
        counts: dict[str, float],
    ) -> TransportedRows:
        """Transports one source's distributions along responses to the target's tokens, and counts positions by rule."""
        responses = [one.choice.response.encode() for one in examples]
        transported = transport_rows(signals, response_ids(examples), responses, projection, self.rules, self.top_k)
        found = coverage(transported.rules.values)
        add_counts(counts, {f"alignment/{self.chooser.names[source]}/{rule}": number for rule, number in found.items()})
        return transported

    def _encode(self, rows: list[dict], choices: list[Choice], counts: dict[str, float]) -> list[EncodedChoice]:
        """Encodes choices in the target's tokens. A choice is left out and counted if they do not spell its response, which would
        teach another text, if the target's template does not accept its prompt, or if a token of it is beyond the logits."""
        examples, wrong = self._encode_all(rows, choices)
        refused = sum(one.refused is not None for one in examples)
        add_counts(counts, {"misspelt_by_target": len(wrong) - refused, "examples": -len(wrong)})
        add_counts(counts, {"refused_by_target": refused} if refused else {})
        for choice in (choices[place] for place in wrong):
            add_counts(counts, {f"wins/{choice.mode}/{self.chooser.teacher_of(choice)}": -1})
        return [one for place, one in enumerate(examples) if place not in wrong]

    def _encode_all(self, rows: list[dict], choices: list[Choice]) -> tuple[list[EncodedChoice], set[int]]:
        """Encodes choices in the target's tokens, and returns the places of those that cannot be used."""
        examples = self.target.encode(rows, choices)
        wrong = {*misspelt(self.target.tokens, response_ids(examples), [c.response.encode() for c in choices])}
        size = self.target.tokens.vocab_size
        return examples, wrong | {place for place, one in enumerate(examples) if max(one.prompt_ids, default=0) >= size}

    def _on_policy(
        self, rows: list[dict], choices: list[Choice], lazy: Sequence[pa.Table], counts: dict[str, float]
    ) -> tuple[list[EncodedChoice], Bool[np.ndarray, "E M"]]:
        """Encodes the target's answers; leaves out and counts those that cannot be used, or that no teacher of theirs could read.

        Returns:
            The E answers that are used, and which of the M sources have read them for it.
        """
        examples, wrong = self._encode_all(rows, choices)
        read = [
            {key for key, mode in zip(t["row_id"].to_pylist(), t["mode"].to_pylist(), strict=True) if mode == ON_POLICY}
            for t in lazy
        ]
        has_read = np.zeros((len(choices), len(self.chooser.names)), dtype=bool)
        for place, choice in enumerate(choices):
            for source in self.chooser.readers(choice):
                has_read[place, source] = rows[choice.row]["row_id"] in read[source]
        left_out = wrong | set(np.flatnonzero(~has_read.any(axis=1)).tolist())
        if left_out:
            add_counts(counts, {"on_policy_examples": -len(left_out), "on_policy_left_out": len(left_out)})
        kept = [place for place in range(len(examples)) if place not in left_out]
        return [examples[place] for place in kept], has_read[kept]

    def _pairs(self, rows: list[dict], choices: list[Choice], counts: dict[str, float]) -> pa.Table | None:
        """Returns the pairs as a table of the select schema, without distributions; None without pairs. If one answer cannot be
        used, neither is the other, which is counted."""
        examples, wrong = self._encode_all(rows, choices)
        broken = {place // len(PAIR) for place in wrong}
        kept = [one for place, one in enumerate(examples) if place // len(PAIR) not in broken]
        if broken:
            add_counts(counts, {"preference_pairs": -len(broken), "pairs_left_out": len(broken)})
        if not kept:
            return None
        ids = response_ids(kept)
        shape = (len(ids.values), self.top_k)
        nothing = TopK(np.zeros(shape, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float16))
        rules = Ragged(np.zeros(len(ids.values), dtype=np.uint8), ids.offsets)
        return self._table(rows, kept, TransportedRows(RaggedTopK(nothing, ids.offsets), rules, {}))

    def _table(self, rows: list[dict], examples: list[EncodedChoice], transported: TransportedRows) -> pa.Table:
        """Returns the examples as a table of the select schema."""
        choices = [one.choice for one in examples]
        columns: dict[str, Any] = {
            "row_id": [rows[c.row]["row_id"] for c in choices],
            "mode": [c.mode for c in choices],
            "category": [rows[c.row]["category"] for c in choices],
            "teacher": [self.chooser.teacher_of(c) for c in choices],
            "sample": [c.sample for c in choices],
            "advantages": [c.advantages for c in choices],
            "prompt_ids": [one.prompt_ids for one in examples],
            "response_ids": [one.response_ids for one in examples],
            "response_bytes": [len(c.response.encode()) for c in choices],
            **to_columns("topk", transported.topk, self.target.tokens.vocab_size),
            "rules": [transported.rules.row(index) for index in range(len(choices))],
        }
        return pa.table(
            {f.name: c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in self.schema},
            schema=self.schema,
        )


def _count_tokens(transported: TransportedRows, counts: dict[str, float]) -> None:
    """Counts tokens, in total and by rule, and rows not aligned."""
    used = coverage(transported.rules.values)
    add_counts(counts, {f"rule/{rule}": number for rule, number in used.items()})
    add_counts(counts, {"not_aligned": len(transported.refused), "tokens": len(transported.rules.values)})


def response_ids(examples: Sequence[EncodedChoice]) -> Ragged:
    """Returns the target's tokens of each response."""
    return Ragged.from_rows([one.response_ids for one in examples], dtype=np.int64)
