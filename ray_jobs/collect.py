"""Stage `collect`, once per source: teacher-forces the ground truth and generates answers, with top-k distributions of both."""

from typing import Any

from profuser.artifacts import Artifact, Manifest
from profuser.engines.collecting import SourceReader, collect_table, count
from profuser.engines.loading import load_engine
from profuser.recipe.models import GenerationConfig, ModelConfig, SourceConfig, TemplateConfig
from profuser.run import FusionRun
from ray_jobs.cluster import gpus_for
from ray_jobs.shards import finish, run_shards


class CollectWorker:
    """One engine; turns corpus shards into shards of signals."""

    def __init__(
        self,
        corpus: Artifact,
        output: Artifact,
        reader: dict[str, Any],
        generation: GenerationConfig,
        top_k: int,
        seed: int,
    ):
        self.corpus, self.output = corpus, output
        self.reader = make_reader(**reader)
        self.generation, self.top_k, self.seed = generation, top_k, seed

    def process(self, shard: int) -> dict[str, float]:
        """Collects one shard."""
        rows = self.corpus.read_shard(shard)
        signals = self.reader.read(rows, self.generation, self.top_k, self.seed)
        counts = count(signals)
        self.output.write_shard(shard, collect_table(signals, self.reader.engine.vocab_size, self.top_k), counts)
        return counts


def make_reader(path: str, config: ModelConfig, template: TemplateConfig) -> SourceReader:
    """Loads a model's engine, with the end-of-turn token of its template as a stop."""
    from transformers import AutoTokenizer

    from profuser.corpus import end_token_id

    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=config.revision, trust_remote_code=config.engine.trust_remote_code
    )
    ends = [end_token_id(tokenizer, template)]
    return SourceReader(load_engine(path, config.revision, config.engine, ends), template)


def collect(run: FusionRun, source: SourceConfig) -> Manifest:
    """Runs the stage for one source."""
    output = run.collect(source)
    recipe = run.recipe
    counts, seconds = run_shards(
        output,
        run.corpus(),
        CollectWorker,
        {
            "corpus": run.corpus(),
            "output": output,
            "reader": {"path": run.model(source).path, "config": source, "template": recipe.template},
            "generation": source.generation or recipe.collect.generation,
            "top_k": recipe.collect.top_k,
            "seed": recipe.seed,
        },
        source.pool,
        gpus_for(source, source.pool),
    )
    return finish(output, counts, seconds)
