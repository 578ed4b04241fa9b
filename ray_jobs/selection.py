"""Stage `select`: joins the sources' shards, chooses teachers in both modes, and writes the training examples."""

import numpy as np
import pyarrow as pa
import ray

from profuser.artifacts import Artifact, Manifest
from profuser.recipe.models import Recipe
from profuser.recipe.pools import PoolConfig
from profuser.rewards.voting import RewardScale
from profuser.run import FusionRun
from profuser.selection import Selector
from ray_jobs.alignment import Pairs, read_pairs
from ray_jobs.shards import finish, run_shards


class SelectWorker:
    """Turns shards of signals and scores into shards of training examples."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        rewards: list[Artifact],
        output: Artifact,
        recipe: Recipe,
        pairs: ray.ObjectRef,
        scales: list[RewardScale],
    ):
        self.corpus, self.collected, self.rewards, self.output = corpus, collected, rewards, output
        read: Pairs = ray.get(pairs)
        self.selector = Selector(
            names=[source.name for source in recipe.sources],
            teachers=[teacher.name for teacher in recipe.teachers],
            projections=read.projections,
            target=read.target,
            config=recipe.select,
            scales=scales,
            top_k=recipe.collect.top_k,
            weights=[reward.weight for reward in recipe.rewards],
        )

    def process(self, shard: int) -> dict[str, float]:
        """Selects one shard."""
        table, counts = self.selector.select(
            self.corpus.read_shard(shard),
            [artifact.read_shard(shard) for artifact in self.collected],
            [artifact.read_shard(shard) for artifact in self.rewards],
        )
        self.output.write_shard(shard, table, counts)
        return counts


def reward_scales(rewards: list[Artifact]) -> list[RewardScale]:
    """Mean and spread of each reward over all the answers of the run."""
    out = []
    for artifact in rewards:
        columns = [table["scores"].combine_chunks().flatten() for table in artifact.tables()]
        scores = pa.chunked_array(columns).to_numpy() if columns else np.zeros(0)
        out.append(RewardScale.of(np.asarray(scores, dtype=np.float64)))
    return out


def select(run: FusionRun) -> Manifest:
    """Runs the stage."""
    output, recipe = run.select(), run.recipe
    rewards, pairs = run.artifacts("rewards"), read_pairs(run)
    arguments = {
        "corpus": run.corpus(),
        "collected": run.artifacts("collect"),
        "rewards": rewards,
        "output": output,
        "recipe": recipe,
        "pairs": ray.put(pairs),
        "scales": reward_scales(rewards),
    }
    counts, seconds = run_shards(output, run.corpus(), SelectWorker, arguments, PoolConfig(), 0.0)
    vocabulary = {
        f"vocabulary/{source.name}/{rule}": float(number)
        for source, projection in zip(recipe.sources, pairs.projections, strict=True)
        for rule, number in projection.counts().items()
    }
    return finish(output, counts, seconds, **vocabulary)
