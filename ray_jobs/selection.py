"""Stage `select`: joins the sources' shards, chooses teachers in both modes, and writes the training examples."""

from typing import Any

import numpy as np
import pyarrow as pa

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts import Artifact, Manifest
from profuser.corpus import end_token_id
from profuser.recipe.models import ModelConfig, PoolConfig, Recipe
from profuser.rewards.voting import RewardScale
from profuser.run import FusionRun
from profuser.selection import Selector, Target
from ray_jobs.shards import finish, run_shards

Tokenizer = tuple[str, ModelConfig, int]
"""Path, settings and logits' width of a model whose tokenizer is read."""


class SelectWorker:
    """Turns shards of signals and scores into shards of training examples."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        rewards: list[Artifact],
        output: Artifact,
        recipe: Recipe,
        sources: list[Tokenizer],
        target: Tokenizer,
        scales: list[RewardScale],
    ):
        self.corpus, self.collected, self.rewards, self.output = corpus, collected, rewards, output
        tokenizer, tokens = read_tokenizer(target, recipe)
        tables = [read_tokenizer(source, recipe)[1] for source in sources]
        self.selector = Selector(
            names=[source.name for source in recipe.sources],
            teachers=[teacher.name for teacher in recipe.teachers],
            projections=[VocabProjection.build(table, tokens) for table in tables],
            target=Target(tokenizer, tokens, recipe.template),
            config=recipe.select,
            scales=scales,
            top_k=recipe.collect.top_k,
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


def read_tokenizer(which: Tokenizer, recipe: Recipe) -> tuple[Any, TokenBytes]:
    """A model's tokenizer and the bytes of its tokens."""
    from transformers import AutoTokenizer

    path, config, vocab_size = which
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=config.revision, trust_remote_code=config.engine.trust_remote_code
    )
    return tokenizer, TokenBytes.from_tokenizer(tokenizer, vocab_size, [end_token_id(tokenizer, recipe.template)])


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
    sources = [
        (run.model(source).path, source, run.vocab_size(f"sources.{source.name}.model")) for source in recipe.sources
    ]
    rewards = run.artifacts("rewards")
    arguments = {
        "corpus": run.corpus(),
        "collected": run.artifacts("collect"),
        "rewards": rewards,
        "output": output,
        "recipe": recipe,
        "sources": sources,
        "target": (run.model(recipe.target).path, recipe.target, run.vocab_size("target.model")),
        "scales": reward_scales(rewards),
    }
    counts, seconds = run_shards(output, run.corpus(), SelectWorker, arguments, PoolConfig(), 0.0)
    return finish(output, counts, seconds)
