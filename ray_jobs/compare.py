"""`profuser compare`: held-out results of several runs side by side, and in what their recipes differ."""

from collections.abc import Sequence

import pyarrow as pa
from rich.table import Table

from profuser.config import flatten, identity
from profuser.evaluation.heldout import scores
from profuser.run import FUSED, TARGET, FusionRun
from ray_jobs.pipeline import find_run
from ray_jobs.progress import console


def print_comparison(names: Sequence[str], storage: str) -> None:
    """Prints target and fused model of each run on the rows that all of them could take, and the settings that differ."""
    runs = {name: find_run(name, storage) for name in names}
    tables: dict[str, pa.Table] = {}
    for name, run in runs.items():
        for model in (TARGET, FUSED):
            artifact = run.evaluate(model)
            if artifact.manifest() is not None:
                tables[f"{name}/{model}"] = pa.concat_tables(artifact.tables())
    if tables:
        result = scores(tables)["all"]
        num = next(iter(result.values())).num_rows
        table = Table("model", "bits per byte", "exact match", title=f"{num} held-out rows", title_justify="left")
        for model, score in result.items():
            table.add_row(model, f"{score.bits_per_byte:.3f}", f"{100 * score.exact_match:.1f} %")
        console.print(table)
    else:
        console.print("none of these runs has been evaluated yet")
    _print_differences(runs)


def _print_differences(runs: dict[str, FusionRun]) -> None:
    settings = {name: flatten(identity(run.recipe)) for name, run in runs.items()}
    keys = sorted({key for tree in settings.values() for key in tree} - {"name"})
    differing = [key for key in keys if len({str(tree.get(key)) for tree in settings.values()}) > 1]
    table = Table("setting", *runs, title="settings that differ", title_justify="left")
    for key in differing:
        table.add_row(key, *(str(tree.get(key, "")) for tree in settings.values()))
    console.print(table if differing else "the recipes do not differ")
