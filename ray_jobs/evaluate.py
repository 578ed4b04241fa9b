"""Stage `evaluate`, once per model: bits per byte and exact match on the held-out rows.

Those of a source were mostly made with its signals (`collect`): then their shards are there, and no engine is loaded.
"""

from typing import Any

import pyarrow as pa

from profuser.artifacts import Artifact, Manifest
from profuser.engines.crash_guard import Attempt
from profuser.evaluation.heldout import score
from profuser.recipe.models import ModelConfig
from profuser.run import FUSED, FusionRun
from ray_jobs.cluster import gpus_for
from ray_jobs.engine_worker import EngineWorker, Evaluation
from ray_jobs.shards import finish, run_shards


class EvaluateWorker(EngineWorker):
    """Turns held-out shards into shards of answers and scores."""

    def __init__(self, source: Artifact, output: Artifact, reader: dict[str, Any], evaluation: Evaluation):
        super().__init__(source, output, reader)
        self.evaluation = evaluation

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Evaluates one shard."""
        return self.evaluation.make(self.reader, shard, rows, attempt)


def model_of(run: FusionRun, name: str) -> tuple[str, ModelConfig]:
    """Path and settings of an evaluated model: `target`, `fused` or a source's name."""
    config = run.evaluated_config(name)
    return str((run.fuse().folder / "model").uri) if name == FUSED else run.model(config).path, config


def evaluate(run: FusionRun, name: str) -> Manifest:
    """Runs the stage for one model."""
    output = run.evaluate(name)
    path, config = model_of(run, name)
    arguments = {
        "source": run.heldout(),
        "output": output,
        "reader": {"path": path, "config": config, "template": run.recipe.template},
        "evaluation": Evaluation(run.heldout(), output, run.recipe.evaluate, run.recipe.seed),
    }
    counts, seconds = run_shards(
        output,
        run.heldout(),
        EvaluateWorker,
        arguments,
        config.pool,
        gpus_for(config, config.pool),
        config.engine.shards_in_flight,
    )
    table = pa.concat_tables(output.tables())
    known = {row["row_id"] for row in table.to_pylist() if row["refused"] is None}
    result = score(table, known)
    return finish(output, counts, seconds, bits_per_byte=result.bits_per_byte, exact_match=result.exact_match)


if __name__ == "__main__":
    from ray_jobs.stage_script import run_stage

    run_stage("evaluate", "model")
