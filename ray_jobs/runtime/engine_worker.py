"""Defines the actors that hold one engine, shared by `collect`, `signals` and `evaluate`."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.engines.base import ReadSettings, SourceEngine
from profuser.engines.collecting import RowDone, RowSignals, SourceReader
from profuser.engines.crash_guard import Attempt, CrashGuard, EngineDeadError
from profuser.engines.loading import ReadModel
from profuser.engines.signal_tables import served, unreadable
from profuser.evaluation.heldout import evaluate_table
from profuser.recipe.models import EvaluateConfig
from ray_jobs.runtime.row_progress import RowReporter, ShardKey
from ray_jobs.runtime.stage_metrics import EngineMetrics

NOTES = "attempts"
"""Folder in an artifact where the attempts at its shards are noted, to find rows that crash the engine."""
ENGINE_DEAD = 70
"""Exit code of an actor whose engine died; Ray restarts the actor."""


class EngineWorker(ABC):
    """An actor with one engine.

    Args:
        source: artifact with the corpus rows.
        output: artifact that is written, shard by shard.
        model: the model that reads the rows.
    """

    def __init__(self, source: Artifact, output: Artifact, model: ReadModel):
        self.source, self.output = source, output
        self.reader = model.load()
        self.metrics = EngineMetrics(output)
        self.reader.loop.observe = self.metrics
        self.guard = CrashGuard(output.folder / NOTES)
        self.reporter: RowReporter | None = None

    def report_to(self, reporter: RowReporter) -> None:
        """See `ReportsRows`."""

        def observe(engine: SourceEngine, num_requests: int) -> None:
            self.metrics(engine, num_requests)
            reporter.tokens(engine, num_requests)

        self.reporter, self.reader.loop.observe = reporter, observe
        reporter.tokens(self.reader.engine, 0)  # it has loaded

    def row_counter(
        self, shard: int, num_rows: int, method: str = "process", num_answers: int | None = None
    ) -> RowDone | None:
        """Returns a function that counts one more answer of a shard; None if nobody asked for reports.

        Args:
            shard: the shard's number.
            num_rows: its rows.
            method: name of the method that makes it.
            num_answers: number of answers that make up the shard; by default one per row.
        """
        return self.reporter and self.reporter.shard(ShardKey(method, shard), num_rows, num_answers or num_rows)

    def process(self, shard: int) -> dict[str, float]:
        """Makes and writes one shard. Rows that crash the engine are found and refused with the reason."""
        rows = self.source.read_shard(shard)
        with _engine_alive(self.output, shard), self.guard.shard(shard, rows.num_rows) as attempt:
            return self.make(shard, rows, attempt)

    @abstractmethod
    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Processes a shard's rows; `attempt` keeps rows that crash the engine away from it."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model on the held-out rows."""

    source: Artifact
    """Artifact with the held-out rows."""
    output: Artifact
    config: EvaluateConfig
    seed: int

    def make(
        self, reader: SourceReader, shard: int, rows: pa.Table, attempt: Attempt, row_done: RowDone | None = None
    ) -> dict[str, float]:
        """Evaluates and writes one shard; `row_done` as in `SourceReader.read`."""
        signals = read_guarded(reader, rows, ReadSettings(self.config.generation, 0, self.seed), attempt, row_done)
        keeps = reader.template.thinking == "keep"
        table = evaluate_table(rows, signals, reader.tokens, self.config.answer_pattern, keeps)
        refused = len(table) - table["refused"].null_count
        counts: dict[str, float] = {"rows": len(table), "refused": refused, **unreadable(signals), **served(signals)}
        self.output.write_shard(shard, table, counts)
        return counts

    def process(
        self, reader: SourceReader, shard: int, rows: pa.Table, row_done: RowDone | None = None
    ) -> dict[str, float]:
        """Evaluates and writes one shard of rows; those that crash the engine are refused."""
        guard = CrashGuard(self.output.folder / NOTES)
        with _engine_alive(self.output, shard), guard.shard(shard, rows.num_rows) as attempt:
            return self.make(reader, shard, rows, attempt, row_done)


@contextmanager
def _engine_alive(output: Artifact, shard: int) -> Iterator[None]:
    """Exits the process if its engine has died: its state is lost, with that of the other shards in flight."""
    try:
        yield
    except EngineDeadError as error:
        print(f"{output.stage} shard {shard}: {error}", file=sys.stderr, flush=True)
        os._exit(ENGINE_DEAD)


def read_guarded(
    reader: SourceReader, rows: pa.Table, how: ReadSettings, attempt: Attempt, row_done: RowDone | None = None
) -> list[RowSignals]:
    """Returns a source's signals for all rows; a row that crashes the engine is refused with the reason."""
    results, crashing = attempt.run(lambda places: reader.read(rows.take(places), how, row_done))
    for place, message in sorted(crashing.items()):
        row = rows.slice(place, 1).to_pylist()[0]
        reason = f"it crashes the engine: {message}"
        results.insert(place, RowSignals(row["row_id"], len(row["response"].encode()), reason))
    return results
