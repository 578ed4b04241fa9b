"""Implements `profuser plan`: prints stages, rows, estimated tokens, disk and devices without starting anything.

The plan is rough on purpose: tokens come from bytes, disk from the codec's measured size. It reads the corpus, and only the config
of a model; the memory of training is exact to some per cent (`profuser.training.memory`).
With `--probe` the sources are started and measured instead (`ray_jobs.cli.probe`).
"""

from collections.abc import Iterator

from profuser.artifacts.artifact import read_manifest
from profuser.corpus import QuarantinedRow, corpus_rows, read_corpus
from profuser.corpus.locations import HUB
from profuser.errors import TrainingError, UserError
from profuser.planning.plan_file import PLAN
from profuser.recipe.fusing import Epochs
from profuser.recipe.models import CorpusConfig, Recipe
from profuser.recipe.preparing import PartConfig, RowsConfig
from profuser.recipe.sources import ServedModelConfig
from profuser.report.plots.schedule import ScheduleDrawing
from profuser.report.tables.plan import amount
from profuser.report.tables.table import STAGE_WIDTH, name_cell, new_table
from profuser.run.endpoints import unasked_lines
from profuser.run.fusion_run import FusionRun
from profuser.run.stage import CorpusSize
from profuser.run.stage_plans import BYTES_PER_TOKEN, num_updates, train_rows
from profuser.run.stages import plan_run
from ray_jobs.cli.corpus import print_corpus
from ray_jobs.runtime.progress import console, print_line

MAX_ROWS_READ = 20_000
UNKNOWN_SIZE = CorpusSize(50_000, 100, 200, False)
"""Size assumed for a corpus that cannot be read: roughly Alpaca's."""


def measure(run: FusionRun) -> CorpusSize:
    """Reads the corpus, or its first `MAX_ROWS_READ` rows, and estimates tokens from bytes."""
    sizes = [_measure(run.corpus_config, source) for source in run.corpus_config.sources]
    total = sum(size.num_rows for size in sizes)
    prompt, response = (
        sum(getattr(size, name) * size.num_rows for size in sizes) / total
        for name in ("prompt_tokens", "response_tokens")
    )
    return CorpusSize(total, prompt, response, all(size.exact for size in sizes))


def _measure(config: CorpusConfig, source: RowsConfig) -> CorpusSize:
    """Reads the corpus or one of its parts; a part's share and limit count."""
    rows, prompt, response, more = 0, 0, 0, False
    limit = min(config.max_rows or MAX_ROWS_READ, MAX_ROWS_READ)
    for row in corpus_rows(config, read_corpus(str(source.path)), source=source):
        if isinstance(row, QuarantinedRow):
            continue
        if rows == limit:
            more = config.max_rows is None or config.max_rows > limit
            break
        rows += 1
        prompt += sum(len(message.content.encode()) for message in row.messages)
        response += len(row.response.encode())
    if rows == 0:
        raise UserError(f"{source.setting}.path: {source.path}: no usable row")
    share = rows * BYTES_PER_TOKEN
    num_rows = config.max_rows or rows if more else rows
    if isinstance(source, PartConfig):
        num_rows, more = source.num_used(num_rows), more and source.num_used(num_rows) != source.max_rows
    return CorpusSize(num_rows, prompt / share, response / share, not more)


def print_plan(recipe: Recipe) -> None:
    """Prints the plan. A corpus or model that is not available locally is reported, and planned as far as possible."""
    run = FusionRun(recipe)
    run.check_lab()
    for setting, config in run.models().items():
        ref = run.model(config)
        if isinstance(config, ServedModelConfig) and config.endpoint:
            continue
        if ref.is_local:
            ref.config(setting)
        else:
            print_line(f"{setting}: {ref.path} is downloaded from the Hub when the run starts")
    try:
        size = measure(run)
        print_corpus(run)
    except UserError as error:
        if not any(path.startswith(HUB) for path in run.corpus_paths.values()):
            raise
        print_line(f"{error}; planning for {UNKNOWN_SIZE.num_rows:,} rows of 300 tokens")
        size = UNKNOWN_SIZE
    title = f"{recipe.name}: {size.num_rows:,} rows{'' if size.exact else ' or more'}, "
    title += f"{size.prompt_tokens:.0f} prompt + {size.response_tokens:.0f} response tokens each (estimated)"
    table = new_table(title, "stage")
    for column in ("rows", "tokens", "disk", "devices", "state"):
        table.add_column(column)
    for name, line in plan_run(run, size).items():
        disk = f"{line.disk_bytes / 1e6:,.1f} MB" if line.disk_bytes else ""
        state = "done" if read_manifest(run.folder / name) else "to do"
        table.add_row(name_cell(name, STAGE_WIDTH), f"{line.rows:,}", f"{line.tokens:,.0f}", disk, line.devices, state)
    console.print(table)
    for line in (*unasked_lines(run), *_prices(run, size)):
        print_line(line)
    print_memory(run)
    steps = num_updates(recipe, train_rows(run, size), size)
    about = "about " if isinstance(recipe.fuse.duration, Epochs) else ""
    console.print(f"fuse: {about}{steps:,} updates of {recipe.fuse.batch_tokens:,} tokens; weights of the modes:\n")
    console.print(ScheduleDrawing(recipe.fuse.schedule, steps))


def _prices(run: FusionRun, size: CorpusSize) -> Iterator[str]:
    """Yields a line per part that is paid by the token."""
    for name, line in plan_run(run, size).items():
        if line.money is not None:
            yield f"{name}: about {amount('money', line.money)} {run.recipe.plan.currency} for the endpoint's tokens"


def print_memory(run: FusionRun) -> None:
    """Prints the memory per device that training needs, or one line where the target's config is not available locally."""
    from huggingface_hub import try_to_load_from_cache

    recipe, ref = run.recipe, run.model(run.recipe.target)
    if not ref.is_local and not isinstance(try_to_load_from_cache(ref.path, "config.json", revision=ref.revision), str):
        print_line(f"fuse: memory per device can be planned once {ref.path} has been downloaded")
        return
    # Imported late: these take seconds.
    from transformers import AutoConfig

    from profuser.report.tables.memory import memory_table, memory_words
    from profuser.training.memory import estimate, scale_to_devices

    path = ref.local(weights=False, setting="target.model", trained=True)
    config = AutoConfig.from_pretrained(path, revision=ref.revision, local_files_only=True)
    dtype = recipe.fuse.dtype
    if dtype == "auto":
        dtype = "float32" if recipe.fuse.workers.use_gpu is False else "bfloat16"
    try:
        found = estimate(config, recipe.fuse, recipe.fuse.workers.num_workers, dtype)
    except TrainingError as error:
        print_line(str(error))
        return
    console.print(memory_table(found, dtype))
    for sentence in memory_words(found, scale_to_devices(found, recipe.fuse)):
        print_line(sentence)


def print_probe(recipe: Recipe, num_rows: int) -> None:
    """Probes the sources with `num_rows` rows, and prints the extrapolated cost of the whole corpus."""
    from profuser.report.tables.plan import plan_table, plan_words
    from ray_jobs.cli.probe import probe

    run = FusionRun(recipe)
    found = probe(run, num_rows)
    console.print(plan_table(found))
    for sentence in plan_words(found):
        print_line(sentence)
    print_line(f"plan: {run.folder.path(PLAN)}; the finished run's report compares it with what was measured")
