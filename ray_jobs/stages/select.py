"""Stage `select`: joins the sources' shards, chooses teachers in both modes, and writes the training examples."""

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.schemas import ON_POLICY, REWARDS
from profuser.recipe.models import Recipe
from profuser.rewards.voting import RewardScale
from profuser.run.choosing import make_chooser, reward_scales
from profuser.run.fusion_run import FusionRun
from profuser.run.tokenizers import TokenizerPairs, read_tokenizer_pairs
from profuser.selection.examples import Selector
from profuser.selection.teachers import LIGHT_COLUMNS
from ray_jobs.runtime.shards import finish, run_shards


class SelectWorker:
    """Turns shards of signals and scores into shards of training examples."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        rewards: list[Artifact],
        lazy: list[list[Artifact]],
        own: list[Artifact],
        output: Artifact,
        recipe: Recipe,
        pairs: ray.ObjectRef,
        scales: list[RewardScale],
    ):
        self.corpus, self.collected, self.rewards, self.output = corpus, collected, rewards, output
        self.lazy, self.own = lazy, own
        read: TokenizerPairs = ray.get(pairs)
        chooser = make_chooser(recipe, [projection.source for projection in read.projections], scales)
        self.selector = Selector(chooser, read.projections, read.target, recipe.collect.top_k)

    def process(self, shard: int) -> dict[str, float]:
        """Selects one shard."""
        table, counts = self.selector.select(
            self.corpus.read_shard(shard),
            [artifact.read_shard(shard) for artifact in self.collected],
            [artifact.read_shard(shard, REWARDS.names) for artifact in self.rewards],
            [_read_lazy(artifacts, shard) for artifacts in self.lazy] or None,
            next((artifact.read_shard(shard, list(LIGHT_COLUMNS)) for artifact in self.own), None),
        )
        self.output.write_shard(shard, table, counts)
        return counts


def _read_lazy(artifacts: list[Artifact], shard: int) -> pa.Table:
    """Returns one source's lazy signals: the run's, and those of a later round in place of the run's on-policy ones."""
    first, *later = (artifact.read_shard(shard) for artifact in artifacts)
    return pa.concat_tables([first.filter(pc.field("mode") != ON_POLICY), *later]) if later else first


def select(run: FusionRun, round_number: int = 1) -> Manifest:
    """Writes the missing shards of a round's examples; the manifest also counts each vocabulary's tokens by how they map."""
    output, recipe = run.select(round_number), run.recipe
    rewards, pairs = run.artifacts("rewards"), read_tokenizer_pairs(run)
    lazy = recipe.sources if recipe.collect.signals == "lazy" else ()
    later = {source.name: [run.signals(source, round_number)] for source in recipe.readers} if round_number > 1 else {}
    worker = partial(
        SelectWorker,
        run.corpus(),
        collected=run.artifacts("collect"),
        rewards=rewards,
        lazy=[[run.signals(source), *later.get(source.name, [])] for source in lazy],
        own=run.own_answers(round_number),
        output=output,
        recipe=recipe,
        pairs=ray.put(pairs),
        scales=reward_scales(rewards),
    )
    counts, seconds = run_shards(output, run.corpus(), worker, recipe.select.pool, 0.0)
    # The tokens of a source without a tokenizer are known row by row.
    vocabulary = {
        f"vocabulary/{source.name}/{rule}": float(number)
        for source, projection in zip(recipe.sources, pairs.projections, strict=True)
        if not source.lacks_tokenizer
        for rule, number in projection.counts().items()
    }
    return finish(output, counts, seconds, **vocabulary)
