"""Implements `profuser run --dry-run`: checks everything that can be checked before starting."""

from rich.table import Table

from profuser.engines.device import device
from profuser.recipe.models import Recipe
from profuser.rewards.kinds import kind_of
from profuser.run.endpoints import ask_endpoints, endpoint_lines
from profuser.run.fusion_run import FusionRun
from profuser.run.templates import template_lines
from profuser.run.tokenizers import read_tokenizer_pairs
from ray_jobs.cli.corpus import print_corpus
from ray_jobs.pipeline.checks import check_target, cpu_memory_lines
from ray_jobs.runtime.progress import console, print_line

RULE_TITLES = {
    "exact": "same bytes",
    "first_token": "first token",
    "min_edit": "nearest",
    "role": "by role",
    "tail": "none (tail)",
}


def check_recipe(recipe: Recipe, name: str) -> None:
    """Checks a recipe, its corpus, models and benchmarks, and prints how each vocabulary maps to the target's."""
    run = FusionRun(recipe)
    run.check_inputs()
    print_corpus(run)
    for setting, config in run.models().items():
        if line := run.model(config).conversion(setting, trained=config is recipe.target):
            print_line(line)
    rewards = [line for reward in recipe.rewards if (line := kind_of(reward).line(reward))]
    memory = cpu_memory_lines(run) if device() == "cpu" else []
    for line in (*rewards, *check_target(run), *memory, *endpoint_lines(run, ask_endpoints(run))):
        print_line(line)
    print_pairs(run)
    for line in template_lines(run):
        print_line(line)
    if measured := ", ".join(benchmark.name for benchmark in recipe.evaluate.benchmarks):
        print_line(f"benchmarks: {measured}; their data are available")
    print_line(f"recipe {name}: valid; corpus and models are available")


def print_pairs(run: FusionRun) -> None:
    """Prints how each source's vocabulary maps to the target's."""
    pairs = read_tokenizer_pairs(run)
    table = Table(
        "source",
        *RULE_TITLES.values(),
        title=f"tokens of each source, by how they map to those of {run.recipe.target.model}",
    )
    for source, projection in zip(run.recipe.sources, pairs.projections, strict=True):
        if source.lacks_tokenizer:
            continue
        counts = projection.counts()
        table.add_row(source.name, *(f"{counts[rule]:,}" for rule in RULE_TITLES))
    if table.row_count:
        console.print(table)
    named = zip(run.recipe.sources, pairs.projections, strict=True)
    sizes = {"target.model": pairs.target.tokens} | {source.setting: each.source for source, each in named}
    for setting, tokens in sizes.items():
        if tokens.num_beyond:
            print_line(
                f"{setting}: {tokens.num_beyond} token(s) of the tokenizer have ids beyond the {tokens.vocab_size:,} logits and "
                "are ignored; a row that contains one is refused"
            )
