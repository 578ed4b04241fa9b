"""Follows one corpus row through a finished run: reads from the artifacts what every stage wrote about it.

Legend: T response tokens, K top-k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals, Transported
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import ON_POLICY, PARTS
from profuser.engines.signal_tables import read_answer_signals, read_signals
from profuser.errors import ArtifactError, UserError
from profuser.report.tables.alignment import Aligned, Cut, token_label
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import TARGET
from profuser.signals.codec import from_columns
from profuser.signals.rules import AlignmentRules

SHOWN = 3
"""Number of candidates per position in a table."""


@dataclass(frozen=True)
class RowStory:
    """One row of a run."""

    run: FusionRun
    row_id: str

    @classmethod
    def of(cls, run: FusionRun) -> "RowStory":
        """Picks the first row whose two teachers both differ from the target; else one with two teachers; else the first.

        Raises:
            UserError: the run has no training examples yet.
        """
        targets = {source.name for source in run.recipe.sources if run.recipe.is_target(source)}
        best, most = "", 0
        for table in run.select().tables(["row_id", "teacher"]):
            teachers: dict[str, set[str]] = {}
            for row in table.to_pylist():
                teachers.setdefault(row["row_id"], set()).add(row["teacher"])
            for row_id, found in teachers.items():
                rank = 1 + len(found) + len(found - targets)
                if rank > most:
                    best, most = row_id, rank
        if not best:
            raise UserError(f"run {run.recipe.name!r} has no training examples yet; profuser run continues it")
        return cls(run, best)

    def prompt(self) -> str:
        """Returns the last message of the prompt."""
        return self._one(self.run.corpus(), ["row_id", "messages"])["messages"][-1]["content"]

    def ground_truth(self) -> str:
        """Returns the response of the corpus."""
        return self._one(self.run.corpus(), ["row_id", "response"])["response"]

    def sources(self) -> list[dict[str, Any]]:
        """Returns a row per source: bits per byte of the ground truth, its answers, or why it refused."""
        columns = ["row_id", "refused", "response_bytes", "training_nats", "answers"]
        out = []
        for source in self.run.recipe.sources:
            row = self._one(self.run.collect(source), columns)
            known = row["training_nats"] is not None
            bits = row["training_nats"] / np.log(2) / row["response_bytes"] if known else None
            answers = dict(enumerate(row["answers"] or (), 1))
            texts = {"answer" if len(answers) == 1 else f"answer {n}": text for n, text in answers.items()}
            out.append({"source": source.name, "bits per byte": bits, **texts, "refused": row["refused"] or ""})
        return out

    def rewards(self) -> list[dict[str, Any]]:
        """Returns a row per answer: every judge's reward, and its votes."""
        num_samples = self.run.recipe.collect.samples_per_source
        names = [source.name for source in self.run.recipe.sources for _ in range(num_samples)]
        scores = {
            reward.name: self._one(self.run.rewards(reward))["scores"] or [None] * len(names)
            for reward in self.run.recipe.rewards
        }
        votes = (self._example("inference", ["advantages"]) or {}).get("advantages", [None] * len(names))
        return [
            {"source": name, **{judge: found[place] for judge, found in scores.items()}, "votes": votes[place]}
            for place, name in enumerate(names)
        ]

    def choice(self) -> list[dict[str, Any]]:
        """Returns a row per mode with an example, and per answer of a pair: the teacher (or the answer's source), the values it was
        chosen by, and the number of tokens."""
        names, out = [source.name for source in self.run.recipe.sources], []
        num_samples = self.run.recipe.collect.samples_per_source
        for mode in PARTS:
            example = self._example(mode, ["teacher", "advantages", "response_ids"])
            if example:
                by_source = mode == "training" or (mode == ON_POLICY and self._on_policy_teacher() != "inference")
                keys = names if by_source else [name for name in names for _ in range(num_samples)]
                by = "bits per byte" if self.run.recipe.select.training_metric == "bits_per_byte" else "nats per token"
                values = ", ".join(f"{k} {_short(v)}" for k, v in zip(keys, example["advantages"], strict=True))
                what = by if by_source else "votes"
                row = {"mode": mode, "teacher": example["teacher"], "chosen by": f"{what}: {values}"}
                out.append(row | {"tokens": len(example["response_ids"])})
        return out

    def _on_policy_teacher(self) -> str | None:
        config = self.run.recipe.select.on_policy
        return config.teacher if config else None

    def signals(self, source: str, mode: str = "training", sample: int = 0) -> SourceSignals:
        """Returns a source's tokens of the ground truth, or of one of its answers, with its distributions.

        Raises:
            UserError: there are none: the source refused the row, or only the chosen teachers' distributions were kept.
        """
        return self._signals(source, mode, sample)[0]

    def _signals(self, source: str, mode: str, sample: int) -> tuple[SourceSignals, TokenBytes | None]:
        """Returns signals, and the table of their tokens if these are the row's own."""
        config = next(each for each in self.run.recipe.sources if each.name == source)
        size, top_k = self.run.vocab_size(config.setting), self.run.recipe.collect.top_k
        if self.run.recipe.collect.signals == "eager":
            found, prefix = self._rows(self.run.collect(config)), mode
            found = found.filter(pc.field("refused").is_null())
        else:
            found, prefix = self._rows(self.run.signals(config)), "response"
            found = found.filter(pc.field("mode") == mode)
        if not found.num_rows:
            raise UserError(
                f"row {self.row_id}: no signals of {source} in {mode} mode; choose the row's teacher, or another row"
            )
        if prefix == "inference" and "answer_vocabulary" in found.column_names:
            return read_answer_signals(found, [sample], top_k)
        return read_signals(found, prefix, [sample], size, top_k), None

    def transported(self, mode: str, projections: Sequence[VocabProjection]) -> tuple[Aligned, Transported]:
        """Returns a training example's alignment: the teacher's and the target's tokens, and the transported distributions.

        Args:
            mode: `training` or `inference`.
            projections: from each source's vocabulary to the target's, in the order of the sources.

        Raises:
            UserError: the row has no example in this mode, or all sources teach it together.
        """
        table = self._rows(self.run.select())
        table = table.filter(pc.field("mode") == mode)
        names = [source.name for source in self.run.recipe.sources]
        if not table.num_rows or table["teacher"][0].as_py() not in names:
            raise UserError(f"row {self.row_id} has no single teacher in {mode} mode")
        example = table.select(["teacher", "sample", "response_ids", "rules"]).to_pylist()[0]
        teacher, sample = example["teacher"], example["sample"]
        projection = projections[names.index(teacher)]
        text = self._response(mode, teacher, sample).encode()
        signals, own = self._signals(teacher, mode, sample)
        source = Cut.of(teacher, own or projection.source, signals.ids.values, text)
        target = Cut.of(TARGET, projection.target, example["response_ids"], text)
        vocab_size = self.run.vocab_size("target.model")
        topk = from_columns(table, "topk", self.run.recipe.collect.top_k, vocab_size).row(0)
        rules = AlignmentRules.only(self.run.recipe.select.alignment_rules)
        return Aligned.of(source, target, rules), Transported(topk, np.array(example["rules"], dtype=np.uint8))

    def _response(self, mode: str, teacher: str, sample: int) -> str:
        if mode == "training":
            return self.ground_truth()
        if mode == ON_POLICY:
            (teacher,) = (source.name for source in self.run.recipe.answering)
        config = next(source for source in self.run.recipe.sources if source.name == teacher)
        return self._one(self.run.collect(config), ["row_id", "answers"])["answers"][sample]

    def _example(self, mode: str, columns: list[str]) -> Mapping[str, Any] | None:
        found = self._rows(self.run.select(), ["row_id", "mode", *columns])
        return next((row for row in found.to_pylist() if row["mode"] == mode), None)

    def _one(self, artifact: Artifact, columns: list[str] | None = None) -> Mapping[str, Any]:
        return self._rows(artifact, columns).to_pylist()[0]

    def _rows(self, artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
        """Returns an artifact's rows with this id; raises ArtifactError if there are none."""
        for table in artifact.tables(columns):
            found = table.filter(pc.field("row_id") == self.row_id)
            if found.num_rows:
                return found.combine_chunks()
        raise ArtifactError(f"{artifact.stage}: no row {self.row_id}")


def signal_rows(signals: SourceSignals, tokens: TokenBytes, shown: int = SHOWN) -> list[dict[str, Any]]:
    """Returns a row per token of one response: the token, its probability, and the most likely candidates at its position."""
    out = []
    for place, index in enumerate(signals.ids.values.tolist()):
        mass = np.exp(signals.topk.logprobs[place].astype(np.float64)).tolist()
        likeliest = zip(signals.topk.ids[place].tolist()[:shown], mass, strict=False)
        candidates = [f"{token_label(tokens, candidate)} {share:.3f}" for candidate, share in likeliest]
        own = float(np.exp(np.float64(signals.logprobs[place])))
        row = {"token": token_label(tokens, index), "probability": own}
        out.append(row | {f"top {rank}": text for rank, text in enumerate(candidates, 1)} | {"in the top-k": sum(mass)})
    return out


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
