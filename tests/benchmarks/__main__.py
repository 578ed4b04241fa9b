"""`make bench`: runs every benchmark in one process, prints a table, and writes `benchmarks.json`.

`python -m tests.benchmarks losses` runs one of them alone, and writes nothing.
"""

import json
import platform
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from profuser.artifacts import git_commit
from tests.benchmarks.measure import Row

NAMES = ("transport", "codec", "losses", "fuse", "extraction", "collect", "serve")
OUTPUT = Path("benchmarks.json")


def main(chosen: list[str]) -> None:
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    console = Console(width=max(120, Console().width))
    console.print(f"commit {git_commit()}, {machine}", highlight=False)
    rows: list[Row] = []
    for name in chosen or NAMES:
        module = import_module(f"tests.benchmarks.bench_{name}")
        table = Table(
            "", "value", "baseline", "ratio", "reach", title=module.__doc__.splitlines()[0], title_justify="left"
        )
        for row in module.run():
            table.add_row(row.name, *_cells(row), row.reach)
            rows.append(row)
        console.print(table)
    if not chosen:
        entries = [asdict(row) | {"ratio": row.ratio} for row in rows]
        OUTPUT.write_text(json.dumps({"commit": git_commit(), "machine": machine, "rows": entries}, indent=2) + "\n")
        console.print(f"written to {OUTPUT}", highlight=False)


def _cells(row: Row) -> tuple[str, str, str]:
    number = ",.0f" if row.value >= 100 else ".3g"
    baseline = "" if row.baseline is None else f"{row.baseline:{number if row.baseline >= 100 else '.3g'}}"
    return f"{row.value:{number}} {row.unit}", baseline, "" if row.ratio is None else f"{row.ratio:,.3g} x"


if __name__ == "__main__":
    main(sys.argv[1:])
