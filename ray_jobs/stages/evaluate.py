"""Stage `evaluate`, once per model: bits per byte and exact match on the held-out rows.

A source's shards are usually written by `collect` already; then no engine is loaded.
"""

import math
from functools import partial

import pyarrow as pa

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.engines.crash_guard import Attempt
from profuser.engines.loading import ReadModel
from profuser.evaluation.heldout import score
from profuser.run.endpoints import endpoint_access
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.answer_report import report_answers
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.engine_worker import EngineWorker, Evaluation
from ray_jobs.runtime.shards import finish, run_shards


class EvaluateWorker(EngineWorker):
    """Turns held-out shards into shards of answers and scores."""

    def __init__(self, source: Artifact, output: Artifact, model: ReadModel, evaluation: Evaluation):
        super().__init__(source, output, model)
        self.evaluation = evaluation

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Evaluates one shard."""
        row_done = self.row_counter(shard, rows.num_rows)
        return self.evaluation.make(self.reader, shard, rows, attempt, row_done)


def evaluate(run: FusionRun, name: str) -> Manifest:
    """Runs the stage for one model: `target`, `fused` or a source's name."""
    output = run.evaluate(name)
    path, config = run.evaluated_model(name)
    fitted = fit_engine(run, config, path, config.pool.max_actors)
    model = ReadModel(path, fitted.model, run.template(config), endpoint_access(run, config))
    evaluation = Evaluation(run.heldout(), output, run.recipe.evaluate, run.recipe.seed)
    counts, seconds = run_shards(
        output,
        run.heldout(),
        partial(EvaluateWorker, run.heldout(), output, model, evaluation),
        fitted.pool,
        fitted.num_gpus,
        config.engine.shards_in_flight,
        needs=fitted.needs,
    )
    table = pa.concat_tables(output.tables())
    known = {row["row_id"] for row in table.to_pylist() if row["refused"] is None}
    result = score(table, known)
    metrics = {"bits_per_byte": result.bits_per_byte, "exact_match": result.exact_match}
    # A model that cannot teacher-force has no bits per byte.
    found = {key: value for key, value in metrics.items() if math.isfinite(value)}
    manifest = finish(output, counts, seconds, **found)
    report_answers(output, manifest, manifest.counts.get("answers", 0))
    return manifest
