"""Stage `select`: joins the sources' shards, chooses teachers in both modes, and writes the training examples."""

from functools import partial

import ray

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.schemas import REWARDS
from profuser.recipe.models import Recipe
from profuser.rewards.voting import RewardScale
from profuser.run.choosing import make_chooser, reward_scales
from profuser.run.fusion_run import FusionRun
from profuser.run.tokenizers import TokenizerPairs, read_tokenizer_pairs
from profuser.selection.examples import Selector
from ray_jobs.runtime.shards import finish, run_shards


class SelectWorker:
    """Turns shards of signals and scores into shards of training examples."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        rewards: list[Artifact],
        lazy: list[Artifact],
        output: Artifact,
        recipe: Recipe,
        pairs: ray.ObjectRef,
        scales: list[RewardScale],
    ):
        self.corpus, self.collected, self.rewards, self.lazy, self.output = corpus, collected, rewards, lazy, output
        read: TokenizerPairs = ray.get(pairs)
        chooser = make_chooser(recipe, [projection.source for projection in read.projections], scales)
        self.selector = Selector(chooser, read.projections, read.target, recipe.collect.top_k)

    def process(self, shard: int) -> dict[str, float]:
        """Selects one shard."""
        table, counts = self.selector.select(
            self.corpus.read_shard(shard),
            [artifact.read_shard(shard) for artifact in self.collected],
            [artifact.read_shard(shard, REWARDS.names) for artifact in self.rewards],
            [artifact.read_shard(shard) for artifact in self.lazy] or None,
        )
        self.output.write_shard(shard, table, counts)
        return counts


def select(run: FusionRun) -> Manifest:
    """Writes the missing shards of training examples; the manifest also counts each vocabulary's tokens by how they map."""
    output, recipe = run.select(), run.recipe
    rewards, pairs = run.artifacts("rewards"), read_tokenizer_pairs(run)
    worker = partial(
        SelectWorker,
        run.corpus(),
        collected=run.artifacts("collect"),
        rewards=rewards,
        lazy=run.artifacts("signals"),
        output=output,
        recipe=recipe,
        pairs=ray.put(pairs),
        scales=reward_scales(rewards),
    )
    counts, seconds = run_shards(output, run.corpus(), worker, recipe.select.pool, 0.0)
    vocabulary = {
        f"vocabulary/{source.name}/{rule}": float(number)
        for source, projection in zip(recipe.sources, pairs.projections, strict=True)
        for rule, number in projection.counts().items()
    }
    return finish(output, counts, seconds, **vocabulary)
