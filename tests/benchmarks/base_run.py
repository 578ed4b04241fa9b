"""Makes the base run of an ablation without Ray, vLLM or MLflow: corpus, signals, rewards, examples, scores of target and sources.

Distributions are read once, at the largest K of all arms, and cut for the others: answers are the same for every K.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.corpus.stage import write_corpus
from profuser.engines.base import ReadSettings, Response
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.loading import ReadModel
from profuser.engines.signal_tables import collect_table, count
from profuser.errors import UserError
from profuser.evaluation.heldout import evaluate_table, score
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.kinds import load_judge
from profuser.rewards.scoring import AnswerScorer
from profuser.run.choosing import make_chooser, reward_scales
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import TARGET
from profuser.run.tokenizers import read_tokenizer_pairs
from profuser.selection.examples import Selector
from profuser.signals.codec import TopK

Counts = dict[str, float]


def prepare(run: FusionRun) -> None:
    """Does the work of stage `prepare`."""
    artifacts = run.prepared()
    if not all(artifact.is_complete() for artifact in artifacts):
        start = time.monotonic()
        counts = write_corpus(run.corpus_config, run.recipe.seed, artifacts, run.benchmark_questions())
        for artifact, own in zip(artifacts, counts, strict=True):
            artifact.finish([own], time.monotonic() - start)


def read(runs: Sequence[FusionRun], name: str) -> None:
    """Does the work of stages `collect` and `evaluate` for one source, or of `evaluate` alone for the target, with one engine.

    Args:
        runs: the base run, and those of the arms, which may want another K.
        name: a source, or `target`, which is nothing to do if it is also a source.

    Raises:
        UserError: an arm reads the source with other settings than K.
    """
    base = runs[0]
    wanted = [] if name == TARGET else collections(runs, name)
    evaluated = TARGET if name != TARGET and base.recipe.is_target(base.evaluated_config(name)) else name
    scores = base.evaluate(evaluated) if evaluated in base.evaluated() else None
    if not wanted and (scores is None or scores.is_complete()):
        return
    reader = load(base, base.evaluated_config(name))
    if wanted:
        collect(reader, wanted)
    if scores is not None and not scores.is_complete():
        evaluate(reader, base, scores)
    reader.loop.close()


def collections(runs: Sequence[FusionRun], name: str) -> list[tuple[FusionRun, SourceConfig]]:
    """Returns the runs without signals of a source, one per K."""
    found: dict[str, tuple[FusionRun, SourceConfig]] = {}
    for run in runs:
        for source in run.recipe.sources:
            if source.name == name and not (artifact := run.collect(source)).is_complete():
                found.setdefault(artifact.fingerprint, (run, source))
    settings = [(replace(run.reading(source), top_k=0), source) for run, source in found.values()]
    if any(other != settings[0] for other in settings):
        raise UserError(f"{name}: an arm changes more of its reading than top_k; run profuser lab ablate")
    return list(found.values())


def load(run: FusionRun, config: ModelConfig, path: str | None = None) -> SourceReader:
    """Loads a model of the run; `path` is that of the fused one."""
    return ReadModel(path or run.model(config).path, config, run.template(config)).load()


def collect(reader: SourceReader, wanted: Sequence[tuple[FusionRun, SourceConfig]]) -> None:
    """Reads the whole corpus with one source at the largest K, and writes the artifact of each run."""
    start = time.monotonic()
    run, source = max(wanted, key=lambda each: each[0].reading(each[1]).top_k)
    signals = reader.read(pa.concat_tables(run.corpus().tables()), run.reading(source))
    seconds = time.monotonic() - start
    for run, source in wanted:
        top_k = run.reading(source).top_k
        own = iter([cut(each, top_k) for each in signals])

        def make(rows: pa.Table, own: Iterator[RowSignals] = own, top_k: int = top_k) -> tuple[pa.Table, Counts]:
            part = [next(own) for _ in range(rows.num_rows)]
            return collect_table(part, reader.engine.vocab_size, top_k), count(part)

        output = run.collect(source)
        output.finish(write(run.corpus(), output, make), seconds)


def cut(signals: RowSignals, top_k: int) -> RowSignals:
    """Returns signals with only the first K of their distributions."""

    def short(response: Response) -> Response:
        topk = TopK(response.topk.ids[:, :top_k], response.topk.logprobs[:, :top_k])
        return replace(response, topk=topk)

    training = signals.training and short(signals.training)
    return replace(signals, training=training, answers=[short(each) for each in signals.answers])


def reward(run: FusionRun, config: RewardConfig) -> None:
    """Does the work of stage `rewards` for one reward."""
    output = run.rewards(config)
    if output.is_complete():
        return
    start, collected = time.monotonic(), run.artifacts("collect")
    keeps = [run.template(source).thinking == "keep" for source in run.recipe.sources]
    judge = load_judge(run.reward(config), run.reward_path(config))
    scorer = AnswerScorer(config, judge, run.recipe.collect.samples_per_source, keeps)
    counts = []
    for shard in run.corpus().shards():
        tables = [artifact.read_shard(shard, ["answers"]) for artifact in collected]
        table, own = scorer.score(run.corpus().read_shard(shard), tables)
        output.write_shard(shard, table, own)
        counts.append(own)
    output.finish(counts, time.monotonic() - start)


def select(run: FusionRun) -> None:
    """Does the work of stage `select`."""
    output = run.select()
    if output.is_complete():
        return
    start, recipe, pairs = time.monotonic(), run.recipe, read_tokenizer_pairs(run)
    collected, rewards, lazy = (run.artifacts(stage) for stage in ("collect", "rewards", "signals"))
    chooser = make_chooser(recipe, [each.source for each in pairs.projections], reward_scales(rewards))
    selector = Selector(chooser, pairs.projections, pairs.target, recipe.collect.top_k)
    counts = []
    for shard in run.corpus().shards():
        tables = ([a.read_shard(shard) for a in artifacts] for artifacts in (collected, rewards, lazy))
        signals, scores, later = tables
        table, found = selector.select(run.corpus().read_shard(shard), signals, scores, later or None)
        output.write_shard(shard, table, found)
        counts.append(found)
    output.finish(counts, time.monotonic() - start)


def evaluate(reader: SourceReader, run: FusionRun, output: Artifact) -> None:
    """Does the work of stage `evaluate` for the reader's model, reading all rows at once."""
    start, recipe, heldout = time.monotonic(), run.recipe, run.heldout()
    how = ReadSettings(recipe.evaluate.generation, 0, recipe.seed)
    signals = iter(reader.read(pa.concat_tables(heldout.tables()), how))
    keeps = reader.template.thinking == "keep"

    def make(rows: pa.Table) -> tuple[pa.Table, Counts]:
        part = [next(signals) for _ in range(rows.num_rows)]
        table = evaluate_table(rows, part, reader.tokens, recipe.evaluate.answer_pattern, keeps)
        return table, {"rows": len(table), "refused": len(table) - table["refused"].null_count}

    counts = write(heldout, output, make)
    whole = pa.concat_tables(output.tables())
    found = score(whole, {row["row_id"] for row in whole.to_pylist() if row["refused"] is None})
    results = {"bits_per_byte": found.bits_per_byte, "exact_match": found.exact_match}
    output.finish(counts, time.monotonic() - start, results)


def write(source: Artifact, output: Artifact, make: Callable[[pa.Table], tuple[pa.Table, Counts]]) -> list[Counts]:
    """Writes a shard for each shard of `source`, made of its rows; returns their counts."""
    counts = []
    for shard in source.shards():
        table, own = make(source.read_shard(shard))
        output.write_shard(shard, table, own)
        counts.append(own)
    return counts
