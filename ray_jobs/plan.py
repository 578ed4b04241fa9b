"""`profuser plan`: stages, rows, estimated tokens, disk and devices of a recipe, without starting anything.

Rough on purpose: tokens from bytes, disk from the codec's measured size. It reads the corpus, and of a model only its config; the
memory of training is exact to some per cent (`profuser.training.memory`).
With `--probe` the sources are started and measured instead (`probe`).
"""

from dataclasses import dataclass

from rich.table import Table

from profuser.artifacts import read_manifest
from profuser.corpus import QuarantinedRow, prepare_rows, read_corpus
from profuser.errors import TrainingError, UserError
from profuser.evaluation.benchmark_checks import benchmark_size, local_data
from profuser.plan_file import PLAN
from profuser.planning import STEP_TOKENS, STEPS_PER_TOKEN
from profuser.recipe.fusing import Epochs, count_steps
from profuser.recipe.models import ModelConfig, Recipe
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.report.schedule_drawing import ScheduleDrawing
from profuser.run import FusionRun
from ray_jobs.progress import console

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of a token: about right for English under a vocabulary of some 32,000."""
MAX_ROWS_READ = 20_000
BENCHMARK_ITEM_BYTES = 300
"""Of a benchmark's item on disk, about."""


@dataclass(frozen=True)
class CorpusSize:
    """What the corpus weighs."""

    num_rows: int
    prompt_tokens: float
    """Mean per row, estimated."""
    response_tokens: float
    """Mean per row, estimated."""
    exact: bool
    """Whether the whole corpus was read."""


UNKNOWN_SIZE = CorpusSize(50_000, 100, 200, False)
"""What is assumed of a corpus that cannot be read: that of Alpaca, about."""


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan."""

    stage: str
    rows: int
    tokens: float
    disk_bytes: float
    devices: str
    state: str


def measure(run: FusionRun) -> CorpusSize:
    """Reads the corpus, or its first rows, and estimates tokens from bytes."""
    config = run.recipe.corpus
    rows, prompt, response, more = 0, 0, 0, False
    limit = min(config.max_rows or MAX_ROWS_READ, MAX_ROWS_READ)
    for row in prepare_rows(read_corpus(run.corpus_path), config.format, max_row_bytes=config.max_row_bytes):
        if isinstance(row, QuarantinedRow):
            continue
        if rows == limit:
            more = config.max_rows is None or config.max_rows > limit
            break
        rows += 1
        prompt += sum(len(message.content.encode()) for message in row.messages)
        response += len(row.response.encode())
    if rows == 0:
        raise UserError(f"corpus.path: {run.corpus_path}: no usable row")
    share = rows * BYTES_PER_TOKEN
    return CorpusSize(config.max_rows or rows if more else rows, prompt / share, response / share, not more)


def plan_stages(run: FusionRun, size: CorpusSize) -> list[StagePlan]:
    """The stages of a run over a corpus of this size."""
    recipe = run.recipe
    rows = size.num_rows - (recipe.corpus.heldout_rows if recipe.corpus.heldout is None else 0)
    per_row = size.prompt_tokens + size.response_tokens
    signal_bytes, stored_bytes = (
        2 * rows * size.response_tokens * _bytes_per_token(top_k)
        for top_k in (recipe.collect.top_k, recipe.collect.stored_top_k)
    )
    out = [_line(run, "prepare/train", rows, rows * per_row, rows * per_row * BYTES_PER_TOKEN, "1 CPU")]
    for source in recipe.sources:
        out.append(_line(run, f"collect/{source.name}", rows, 2 * rows * per_row, stored_bytes, _devices(source)))
    for reward in recipe.rewards:
        answers = rows * len(recipe.sources)
        out.append(_line(run, f"rewards/{reward.name}", rows, answers * per_row, answers * 8, _devices(reward)))
    out += _signals_lines(run, rows, size) if recipe.collect.signals == "lazy" else []
    out.append(_line(run, "select", rows, 2 * rows * size.response_tokens, signal_bytes, "1 CPU"))
    tokens, workers = num_updates(recipe, rows, size) * recipe.fuse.batch_tokens, recipe.fuse.workers.num_workers
    out.append(
        _line(run, "fuse", rows, tokens, 0, f"{workers} GPUs, or {workers * recipe.fuse.workers.num_cpus:g} CPUs")
    )
    heldout = recipe.corpus.heldout_rows
    for name in run.evaluated():
        out.append(_line(run, f"evaluate/{name}", heldout, 2 * heldout * per_row, heldout * per_row, "as its source"))
    for name in run.evaluated():
        for benchmark in recipe.evaluate.benchmarks:
            items, tokens = benchmark_size(benchmark, local_data(benchmark))
            stage = f"benchmarks/{name}/{benchmark.name}"
            out.append(_line(run, stage, items, tokens, items * BENCHMARK_ITEM_BYTES, "as its source"))
    for reward in recipe.rewards if recipe.evaluate.judged else ():
        answers = heldout * len(run.evaluated())
        out.append(_line(run, f"judge/{reward.name}", heldout, answers * per_row, answers * 8, _devices(reward)))
    return out


def _signals_lines(run: FusionRun, rows: int, size: CorpusSize) -> list[StagePlan]:
    """The pass over the chosen responses, each teacher's an equal share; with the next steps of `select.condition: exact`."""
    recipe, out = run.recipe, []
    steps = STEPS_PER_TOKEN if recipe.select.condition == "exact" else 0.0
    for source in recipe.sources:
        taught = 2 * rows / len(recipe.teachers) if source in recipe.teachers else 0
        tokens = taught * (size.prompt_tokens + size.response_tokens * (1 + steps * STEP_TOKENS))
        disk = taught * size.response_tokens * (1 + steps) * _bytes_per_token(recipe.collect.top_k)
        out.append(_line(run, f"signals/{source.name}", round(taught), tokens, disk, _devices(source)))
    return out


def _bytes_per_token(top_k: int) -> float:
    """Of a response on disk: top-k ids and log-probabilities, own id and log-probability, 2 bytes each, after zstd."""
    return (4 * top_k + 4) * 0.85


def num_updates(recipe: Recipe, rows: int, size: CorpusSize) -> int:
    """Updates of the target, estimated where they follow from epochs: answers are taken to be as long as the ground truth."""
    return count_steps(recipe.fuse, round(2 * rows * (size.prompt_tokens + size.response_tokens)))


def print_plan(recipe: Recipe) -> None:
    """Prints the plan; a corpus or model that is not here is said so, and planned for as far as that goes."""
    run = FusionRun(recipe)
    run.check_lab()
    for setting, config in run.models().items():
        ref = run.model(config)
        if ref.is_local:
            ref.config(setting)
        else:
            console.print(f"{setting}: {ref.path} comes from the Hub when the run starts", markup=False)
    try:
        size = measure(run)
    except UserError as error:
        if not recipe.corpus.path.startswith("hub:"):
            raise
        console.print(f"{error}; planning for {UNKNOWN_SIZE.num_rows:,} rows of 300 tokens", markup=False)
        size = UNKNOWN_SIZE
    title = f"{recipe.name}: {size.num_rows:,} rows{'' if size.exact else ' or more'}, "
    title += f"{size.prompt_tokens:.0f} + {size.response_tokens:.0f} tokens each (estimated)"
    table = Table("stage", "rows", "tokens", "disk", "devices", "state", title=title, title_justify="left")
    stages = plan_stages(run, size)
    for line in stages:
        disk = f"{line.disk_bytes / 1e6:,.1f} MB" if line.disk_bytes else ""
        table.add_row(line.stage, f"{line.rows:,}", f"{line.tokens:,.0f}", disk, line.devices, line.state)
    console.print(table)
    print_memory(run)
    steps = num_updates(recipe, stages[0].rows, size)
    about = "about " if isinstance(recipe.fuse.duration, Epochs) else ""
    console.print(f"fuse: {about}{steps:,} updates of {recipe.fuse.batch_tokens:,} tokens; weights of the two modes:\n")
    console.print(ScheduleDrawing(recipe.fuse.schedule, steps))


def print_memory(run: FusionRun) -> None:
    """Prints what training will hold in each device's memory; no more than a line where the target's config is not here."""
    from huggingface_hub import try_to_load_from_cache

    recipe, ref = run.recipe, run.model(run.recipe.target)
    if not ref.is_local and not isinstance(try_to_load_from_cache(ref.path, "config.json", revision=ref.revision), str):
        console.print(f"fuse: memory per device is planned once {ref.path} is here", markup=False)
        return
    # All else is there at once; these take seconds.
    from transformers import AutoConfig

    from profuser.report.memory_table import memory_table, memory_words
    from profuser.training.memory import estimate, on_other_devices

    config = AutoConfig.from_pretrained(ref.local(weights=False), revision=ref.revision, local_files_only=True)
    dtype = recipe.fuse.dtype
    if dtype == "auto":
        dtype = "float32" if recipe.fuse.workers.use_gpu is False else "bfloat16"
    try:
        found = estimate(config, recipe.fuse, recipe.fuse.workers.num_workers, dtype)
    except TrainingError as error:
        console.print(str(error), markup=False)
        return
    console.print(memory_table(found, dtype))
    for sentence in memory_words(found, on_other_devices(found, recipe.fuse)):
        console.print(sentence, markup=False)


def print_probe(recipe: Recipe, num_rows: int) -> None:
    """Probes the sources with so many rows, and prints what the whole corpus will take of them."""
    from profuser.report.plan_tables import plan_table, plan_words
    from ray_jobs.probe import probe

    run = FusionRun(recipe)
    found = probe(run, num_rows)
    console.print(plan_table(found))
    for sentence in plan_words(found):
        console.print(sentence, markup=False)
    console.print(f"plan: {run.folder.path(PLAN)}; the finished run's report says how far off it was", markup=False)


def _line(run: FusionRun, stage: str, rows: int, tokens: float, disk: float, devices: str) -> StagePlan:
    done = read_manifest(run.folder / stage) is not None
    return StagePlan(stage, rows, tokens, disk, devices, "done" if done else "to do")


def _devices(model: ModelConfig | RewardConfig) -> str:
    pool = model.pool
    actors = f"{pool.min_actors}" if pool.min_actors == pool.max_actors else f"{pool.min_actors}-{pool.max_actors}"
    if not isinstance(model, (ModelConfig, RewardModelConfig)):
        return f"{actors} x {pool.num_cpus:g} CPU"
    return f"{actors} x ({model.engine.num_devices} GPU, or {pool.num_cpus:g} CPU)"
