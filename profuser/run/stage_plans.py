"""Estimates the cost of each stage from the corpus size: one function per stage, yielding one line per part."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from profuser.evaluation.benchmarks.checks import benchmark_size, local_data
from profuser.planning.estimates import STEP_TOKENS, STEPS_PER_TOKEN
from profuser.recipe.fusing import count_steps
from profuser.recipe.llm_judge import RESPONSES, LlmJudgeConfig
from profuser.recipe.models import ModelConfig, Recipe, SourceConfig
from profuser.recipe.rewards import RewardConfig
from profuser.recipe.schedule import uses
from profuser.recipe.sources import ServedModelConfig
from profuser.rewards.rubrics import rubric_of
from profuser.run.stage import CorpusSize, PlanLine

if TYPE_CHECKING:
    from profuser.run.fusion_run import FusionRun

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token: about right for English with a vocabulary of some 32,000."""
BENCHMARK_ITEM_BYTES = 300
"""Approximate size of a benchmark item on disk."""
SCORE_BYTES = 8
"""Size of a reward's score on disk: one float64."""
VERDICT_DISK = 0.2
"""Share of the bytes of a generative judge's questions that remain on disk after zstd: 0.21 for 500 rows of Alpaca with two answers
each, judged pointwise; in pairs less (0.16, and 0.08 with three answers)."""


def prepare(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates reading and writing the corpus."""
    tokens = train_rows(run, size) * _row_tokens(size)
    yield PlanLine(train_rows(run, size), tokens, tokens * BYTES_PER_TOKEN, "1 CPU")


def collect(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per source, teacher-forcing the ground truth and generating an answer for every row."""
    rows, recipe = train_rows(run, size), run.recipe
    disk = 2 * rows * size.response_tokens * _bytes_per_token(recipe.collect.stored_top_k)
    for source in recipe.sources:
        tokens = (1 if source.lacks_tokenizer else 2) * rows * _row_tokens(size)
        money = _money(run, source, rows * recipe.collect.samples_per_source, rows, size)
        yield PlanLine(rows, tokens, disk, _devices(source), money)


def rewards(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per reward, scoring all sources' answers."""
    rows = train_rows(run, size)
    num_sources = len(run.recipe.sources)
    for reward in run.recipe.rewards:
        if isinstance(reward, LlmJudgeConfig):
            yield _verdicts(reward, rows, num_sources * run.recipe.collect.samples_per_source, size)
            continue
        answers = rows * num_sources
        yield PlanLine(rows, answers * _row_tokens(size), answers * SCORE_BYTES, _devices(reward))


def signals(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per source, teacher-forcing an equal share of the chosen responses; `select.condition: exact` adds next steps."""
    recipe, rows = run.recipe, train_rows(run, size)
    for source in recipe.sources if recipe.collect.signals == "lazy" else ():
        taught = 2 * rows / len(recipe.teachers) if source in recipe.teachers else 0
        yield _reading(run, source, taught + rows * recipe.own_share(source), size)


def select(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates aligning both responses of every row."""
    rows = train_rows(run, size)
    tokens = 2 * rows * size.response_tokens
    yield PlanLine(rows, tokens, tokens * _bytes_per_token(run.recipe.collect.top_k), "1 CPU")


def rounds(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per later round, answers of the target, their reading by teachers and examples; before the last, training too."""
    recipe, rows = run.recipe, train_rows(run, size)
    answering, lines = {source.name for source in recipe.answering}, list(collect(run, size))
    answers = [line for source, line in zip(recipe.sources, lines, strict=True) if source.name in answering]
    for round_number in range(1, recipe.fuse.num_rounds + 1):
        if round_number > 1:
            yield from answers
            for source in recipe.readers:
                yield _reading(run, source, rows * recipe.own_share(source), size)
            yield from select(run, size)
        if round_number < recipe.fuse.num_rounds:
            yield _training(run, round_number, size)


def fuse(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates all updates of training, or those of the last round."""
    yield _training(run, run.recipe.fuse.num_rounds, size)


def _training(run: "FusionRun", round_number: int, size: CorpusSize) -> PlanLine:
    rows, fusing = train_rows(run, size), run.recipe.fuse
    workers = fusing.workers
    devices = f"{workers.num_workers} GPUs, or {workers.num_workers * workers.num_cpus:g} CPUs"
    begin, end = [*fusing.round_starts, 1][round_number - 1 : round_number + 1]
    updates = num_updates(run.recipe, rows, size) * float(end - begin)
    return PlanLine(rows, round(updates * fusing.batch_tokens), 0, devices)


def evaluate(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per model, evaluating the held-out rows."""
    rows = run.recipe.corpus.heldout_rows
    tokens = rows * _row_tokens(size)
    for name in run.evaluated():
        config = run.evaluated_config(name)
        yield PlanLine(rows, 2 * tokens, tokens, "as its source", _money(run, config, rows, rows, size))


def benchmarks(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per model and benchmark, running all items."""
    sizes = [benchmark_size(config, local_data(config)) for config in run.recipe.evaluate.benchmarks]
    for _ in run.benchmarked():
        for items, tokens in sizes:
            yield PlanLine(items, tokens, items * BENCHMARK_ITEM_BYTES, "as its source")


def judge(run: "FusionRun", size: CorpusSize) -> Iterator[PlanLine]:
    """Estimates, per reward, scoring all models' held-out answers."""
    rows = run.recipe.corpus.heldout_rows
    answers = rows * len(run.evaluated())
    for reward in run.recipe.rewards if run.recipe.evaluate.judged else ():
        if isinstance(reward, LlmJudgeConfig):
            yield _verdicts(reward, rows, len(run.evaluated()), size)
            continue
        yield PlanLine(rows, answers * _row_tokens(size), answers * SCORE_BYTES, _devices(reward))


def train_rows(run: "FusionRun", size: CorpusSize) -> int:
    """Returns the number of training rows, without rows held out of the same corpus."""
    return size.num_rows - (run.recipe.corpus.heldout_rows if run.recipe.corpus.heldout is None else 0)


def num_updates(recipe: Recipe, rows: int, size: CorpusSize) -> int:
    """Returns the number of updates; with epochs, an estimate that assumes answers as long as the ground truth, and for each row a
    pair of them and an answer of the target if the schedule trains these."""
    schedule = recipe.fuse.schedule
    responses = 2 + 2 * uses(schedule, "preference") + uses(schedule, "on_policy")
    return count_steps(recipe.fuse, round(responses * rows * _row_tokens(size)))


def _reading(run: "FusionRun", source: SourceConfig, responses: float, size: CorpusSize) -> PlanLine:
    """Estimates reading this many responses, each as long as the ground truth, with their next steps if these are wanted."""
    steps = STEPS_PER_TOKEN if run.recipe.select.condition == "exact" else 0.0
    tokens = responses * (size.prompt_tokens + size.response_tokens * (1 + steps * STEP_TOKENS))
    disk = responses * size.response_tokens * (1 + steps) * _bytes_per_token(run.recipe.collect.top_k)
    return PlanLine(round(responses), tokens, disk, _devices(source))


def _row_tokens(size: CorpusSize) -> float:
    return size.prompt_tokens + size.response_tokens


def _bytes_per_token(top_k: int) -> float:
    """Returns a response's bytes per token on disk: top-k and own ids and log-probabilities, 2 bytes each, after zstd."""
    return (4 * top_k + 4) * 0.85


def _money(run: "FusionRun", model: ModelConfig, answers: int, forced: int, size: CorpusSize) -> float | None:
    """Returns the price of answers as long as the ground truth, and of teacher-forcing if the server is known to be able to."""
    if not isinstance(model, SourceConfig) or model.token_cost is None:
        return None
    facts = run.facts(model)
    read = answers * size.prompt_tokens + (forced * _row_tokens(size) if facts and facts.forces else 0.0)
    return model.token_cost.money(read, answers * size.response_tokens)


def _verdicts(judge: LlmJudgeConfig, rows: int, num_answers: int, size: CorpusSize) -> PlanLine:
    """Estimates a generative judge's replies about so many different answers to each row, each as long as the ground truth.

    A reply is counted as long as it may be: an upper bound.
    """
    num_shown = len(RESPONSES[judge.mode])
    rubric = rubric_of(judge)
    read = len(f"{rubric.system or ''}{rubric.prompt}".encode()) / BYTES_PER_TOKEN
    read += size.prompt_tokens + (1 + num_shown) * size.response_tokens
    replies = rows * judge.num_replies(num_answers)
    money = judge.token_cost and judge.token_cost.money(replies * read, replies * judge.reply_tokens)
    disk = replies * read * BYTES_PER_TOKEN * VERDICT_DISK
    return PlanLine(rows, replies * (read + judge.reply_tokens), disk, _devices(judge), money)


def _devices(model: ModelConfig | RewardConfig) -> str:
    if isinstance(model, ServedModelConfig) and model.endpoint:
        return f"endpoint, {model.endpoint.concurrency} requests at once"
    pool = model.pool
    actors = f"{pool.min_actors}" if pool.min_actors == pool.max_actors else f"{pool.min_actors}-{pool.max_actors}"
    if not model.num_devices:
        return f"{actors} x {1.0 if pool.num_cpus is None else pool.num_cpus:g} CPU"
    cpus = "the free CPUs" if pool.num_cpus is None else f"{pool.num_cpus:g} CPU"
    return f"{actors} x ({model.num_devices} GPU, or {cpus})"
