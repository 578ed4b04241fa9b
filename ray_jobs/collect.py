"""Stage `collect`, once per source: teacher-forces the ground truth and generates answers, with top-k distributions of both."""

import os
import sys
from abc import ABC, abstractmethod
from typing import Any

import pyarrow as pa

from profuser.artifacts import Artifact, Manifest
from profuser.engines.base import Reading
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.crash_guard import Attempt, CrashGuard, EngineDeadError
from profuser.engines.loading import load_engine
from profuser.engines.signal_tables import collect_table, count
from profuser.models import local_model
from profuser.recipe.models import ModelConfig, SourceConfig, TemplateConfig
from profuser.run import FusionRun
from ray_jobs.cluster import gpus_for
from ray_jobs.metrics import EngineMetrics
from ray_jobs.shards import Draining, finish, run_shards

NOTES = "attempts"
ENGINE_DEAD = 70
"""Exit code of an actor whose engine died: Ray starts a new one."""


class EngineWorker(ABC):
    """An actor with one engine; what `collect`, `signals` and `evaluate` have in common.

    Args:
        source: artifact of corpus rows.
        output: artifact that is made, shard by shard.
        reader: arguments of `make_reader`.
    """

    def __init__(self, source: Artifact, output: Artifact, reader: dict[str, Any]):
        self.source, self.output = source, output
        self.reader = make_reader(**reader)
        self.reader.loop.observe = EngineMetrics(output)
        self.guard = CrashGuard(output.folder / NOTES)

    def process(self, shard: int) -> dict[str, float]:
        """Makes and writes one shard. Rows that crash the engine are found and left out, with the reason."""
        rows = self.source.read_shard(shard)
        try:
            with self.guard.shard(shard, rows.num_rows) as attempt:
                return self.make(shard, rows, attempt)
        except EngineDeadError as error:
            # The engine's state is lost with it, and that of the other shards in flight: a new process begins anew.
            print(f"{self.output.stage} shard {shard}: {error}", file=sys.stderr, flush=True)
            os._exit(ENGINE_DEAD)

    @abstractmethod
    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Does with a shard's rows what the stage does, in an attempt that knows which of them must not reach the engine."""


class CollectWorker(EngineWorker):
    """Turns corpus shards into shards of signals."""

    def __init__(self, source: Artifact, output: Artifact, reader: dict[str, Any], how: Reading):
        super().__init__(source, output, reader)
        self.how = how

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Collects one shard."""
        signals = read_guarded(self.reader, rows, self.how, attempt)
        counts = count(signals)
        self.output.write_shard(shard, collect_table(signals, self.reader.engine.vocab_size, self.how.top_k), counts)
        return counts


def read_guarded(reader: SourceReader, rows: pa.Table, how: Reading, attempt: Attempt) -> list[RowSignals]:
    """What a source says of all rows; one that crashes the engine is refused with the reason."""
    results, guilty = attempt.run(lambda places: reader.read(rows.take(places), how))
    for place, words in sorted(guilty.items()):
        row = rows.slice(place, 1).to_pylist()[0]
        reason = f"it crashes the engine: {words}"
        results.insert(place, RowSignals(row["row_id"], len(row["response"].encode()), reason))
    return results


def make_reader(path: str, config: ModelConfig, template: TemplateConfig) -> SourceReader:
    """Loads the engine of a model (a folder, a URI or a Hub name), with the end-of-turn token of its template as a stop."""
    from transformers import AutoTokenizer

    from profuser.corpus import end_token_id

    path = local_model(path)
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=config.revision, trust_remote_code=config.engine.trust_remote_code
    )
    ends = [end_token_id(tokenizer, template)]
    return SourceReader(load_engine(path, config.revision, config.engine, ends), template)


def collect(run: FusionRun, source: SourceConfig, draining: Draining | None = None) -> Manifest:
    """Runs the stage for one source; `draining` is called when its last rows are in the engines."""
    output = run.collect(source)
    recipe = run.recipe
    counts, seconds = run_shards(
        output,
        run.corpus(),
        CollectWorker,
        {
            "source": run.corpus(),
            "output": output,
            "reader": {"path": run.model(source).path, "config": source, "template": recipe.template},
            "how": run.reading(source),
        },
        source.pool,
        gpus_for(source, source.pool),
        source.engine.shards_in_flight,
        draining,
    )
    return finish(output, counts, seconds)


if __name__ == "__main__":
    from ray_jobs.stage_script import run_stage

    run_stage("collect", "source")
