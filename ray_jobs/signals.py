"""Stage `signals`, once per source, where signals are lazy: goes back to the chosen teachers for their distributions.

The choice of teachers needs no distributions, only cross-entropies, answers and votes. So each source is put, a second time,
the responses alone that it was chosen to teach: a share of 1/M of the disk, for one teacher-forced pass over them.
"""

from typing import Any

import pyarrow as pa
import ray

from profuser.artifacts import Artifact, Manifest
from profuser.choosing import LIGHT_COLUMNS, Choice
from profuser.engines.crash_guard import Attempt
from profuser.engines.signal_tables import read_own_ids, signals_table
from profuser.recipe.models import Recipe, SourceConfig
from profuser.rewards.voting import RewardScale
from profuser.run import FusionRun
from profuser.schemas import MODES
from ray_jobs.alignment import read_tokens
from ray_jobs.cluster import gpus_for
from ray_jobs.engine_worker import EngineWorker
from ray_jobs.selection import make_chooser, reward_scales
from ray_jobs.shards import Draining, finish, run_shards


class SignalsWorker(EngineWorker):
    """Turns shards of choices into shards of one source's distributions."""

    def __init__(
        self,
        source: Artifact,
        output: Artifact,
        reader: dict[str, Any],
        collected: list[Artifact],
        rewards: list[Artifact],
        recipe: Recipe,
        name: str,
        tokens: ray.ObjectRef,
        scales: list[RewardScale],
    ):
        super().__init__(source, output, reader)
        self.collected, self.rewards, self.top_k = collected, rewards, recipe.collect.top_k
        self.chooser = make_chooser(recipe, ray.get(tokens), scales)
        self.teacher = self.chooser.names.index(name)

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Teacher-forces what the source was chosen to teach in one shard."""
        collected = [artifact.read_shard(shard, list(LIGHT_COLUMNS)) for artifact in self.collected]
        rewards = [artifact.read_shard(shard) for artifact in self.rewards]
        choices, _ = self.chooser.choose(rows, collected, rewards)
        own = [choice for choice in choices if choice.teacher == self.teacher]
        answers = self.collected[self.teacher].read_shard(shard, ["training_ids", "inference_ids", "answer_tokens"])
        tables = [self._force(rows, answers, [c for c in own if c.mode == mode], mode) for mode in MODES]
        table = pa.concat_tables([table for table in tables if table] or [self.output.schema.empty_table()])
        self.output.write_shard(shard, table, {"rows": rows.num_rows, "responses": len(table)})
        return {"rows": rows.num_rows, "training_tokens": len(table["response_ids"].combine_chunks().flatten())}

    def _force(self, rows: pa.Table, answers: pa.Table, choices: list[Choice], mode: str) -> pa.Table | None:
        if not choices:
            return None
        records = rows.take([choice.row for choice in choices]).to_pylist()
        part = answers.take([choice.row for choice in choices])
        ids = read_own_ids(part, mode, [choice.sample for choice in choices])
        responses = self.reader.force(records, ids, self.top_k)
        return signals_table([r["row_id"] for r in records], mode, responses, self.reader.engine.vocab_size)


def signals(run: FusionRun, source: SourceConfig, draining: Draining | None = None) -> Manifest:
    """Runs the stage for one source; `draining` as in `collect`."""
    output, recipe, rewards = run.signals(source), run.recipe, run.artifacts("rewards")
    counts, seconds = run_shards(
        output,
        run.corpus(),
        SignalsWorker,
        {
            "source": run.corpus(),
            "output": output,
            "reader": {"path": run.model(source).path, "config": source, "template": recipe.template},
            "collected": run.artifacts("collect"),
            "rewards": rewards,
            "recipe": recipe,
            "name": source.name,
            "tokens": ray.put(read_tokens(run)),
            "scales": reward_scales(rewards),
        },
        source.pool,
        gpus_for(source, source.pool),
        source.engine.shards_in_flight,
        draining,
    )
    return finish(output, counts, seconds)


if __name__ == "__main__":
    from ray_jobs.stage_script import run_stage

    run_stage("signals", "source")
