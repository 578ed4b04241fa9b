"""Stage `collect`, once per source: teacher-forces the ground truth and generates answers, with top-k distributions of both."""

from functools import partial

import pyarrow as pa

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.engines.base import ReadSettings
from profuser.engines.crash_guard import Attempt
from profuser.engines.loading import ReadModel
from profuser.engines.signal_tables import collect_table, count
from profuser.recipe.models import SourceConfig
from profuser.run.endpoints import endpoint_access
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import TARGET
from ray_jobs.runtime.answer_report import report_answers
from ray_jobs.runtime.concurrency import engines_at_once
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.engine_worker import EngineWorker, Evaluation, read_guarded
from ray_jobs.runtime.shards import ExtraShards, OnDraining, finish, run_shards


class CollectWorker(EngineWorker):
    """Turns corpus shards into shards of signals, and held-out shards into shards of the model's evaluation."""

    def __init__(
        self,
        source: Artifact,
        output: Artifact,
        model: ReadModel,
        how: ReadSettings,
        evaluation: Evaluation | None = None,
    ):
        super().__init__(source, output, model)
        self.how, self.evaluation = how, evaluation

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Collects one shard."""
        signals = read_guarded(self.reader, rows, self.how, attempt, self.row_counter(shard, rows.num_rows))
        counts = count(signals)
        reader = self.reader
        table = collect_table(signals, reader.engine.vocab_size, self.how.top_k, reader.own_vocabularies)
        self.output.write_shard(shard, table, counts)
        return counts

    def evaluate(self, shard: int) -> dict[str, float]:
        """Evaluates one held-out shard."""
        assert self.evaluation is not None
        rows = self.evaluation.source.read_shard(shard)
        return self.evaluation.process(self.reader, shard, rows, self.row_counter(shard, rows.num_rows, "evaluate"))


def collect(
    run: FusionRun, source: SourceConfig, round_number: int = 1, draining: OnDraining | None = None
) -> Manifest:
    """Runs the stage for one source; calls `draining` when its last rows are in the engines.

    In later rounds (`round_number`) the source is the target, as the round before left it.

    If the source is also evaluated, its engine reads the held-out rows after the others: `evaluate` then finds their
    shards and loads no engine for them.
    """
    output = run.collect(source, round_number)
    evaluation = shared_evaluation(run, source) if round_number == 1 else None
    path = run.source_path(source, round_number)
    fitted = fit_engine(run, source, path, engines_at_once(run.recipe, source))
    model = ReadModel(path, fitted.model, run.template(source), endpoint_access(run, source))
    counts, seconds = run_shards(
        output,
        run.corpus(),
        partial(CollectWorker, run.corpus(), output, model, run.reading(source), evaluation),
        fitted.pool,
        fitted.num_gpus,
        source.engine.shards_in_flight,
        draining,
        (ExtraShards(evaluation.source, evaluation.output, "evaluate"),) if evaluation else (),
        fitted.needs,
    )
    manifest = finish(output, counts, seconds)
    accepted = manifest.counts["rows"] - manifest.counts["refused"]
    report_answers(output, manifest, accepted * run.recipe.collect.samples_per_source)
    return manifest


def shared_evaluation(run: FusionRun, source: SourceConfig) -> Evaluation | None:
    """Returns the evaluation that a source's collecting engine can also make, or None: the engine settings must be equal."""
    name = TARGET if run.recipe.is_target(source) else source.name
    if name not in run.evaluated() or run.evaluate(name).manifest() is not None:
        return None
    if run.evaluated_config(name).engine != source.engine:
        return None
    return Evaluation(run.heldout(), run.evaluate(name), run.recipe.evaluate, run.recipe.seed)
