"""Implements `make bench`: runs every benchmark in one process, prints tables, and writes `benchmarks.json`.

`python -m tests.benchmarks losses` runs only one and writes nothing. `python -m tests.benchmarks gpu` is `make bench-gpu`.
`python -m tests.benchmarks arms` trains the arms of an ablation without Ray (`arms.py`).
`python -m tests.benchmarks peers` compares alignment with other methods on released models (`peers/run.py`).
"""

import json
import platform
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = ("transport", "condition", "codec", "losses", "fuse", "extraction", "collect", "serve")
OUTPUT = Path("benchmarks.json")


def main(chosen: list[str]) -> None:
    import torch
    from rich.console import Console

    from profuser.artifacts.artifact import git_commit

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    console = Console(width=max(120, Console().width))
    console.print(f"commit {git_commit()}, {machine}", highlight=False)
    rows: list[Any] = []
    for name in chosen or NAMES:
        module = import_module(f"tests.benchmarks.bench_{name}")
        found = module.run()
        console.print(table((module.__doc__ or name).splitlines()[0], found))
        rows += found
    if not chosen:
        entries = [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in rows]
        OUTPUT.write_text(json.dumps({"commit": git_commit(), "machine": machine, "rows": entries}, indent=2) + "\n")
        console.print(f"written to {OUTPUT}", highlight=False)
    short = [row.name for row in rows if row.reached is False]
    if short:
        console.print(f"{len(short)} missed their target: {'; '.join(short)}", style="red", highlight=False)


def main_gpu(options: list[str]) -> None:
    from tests.benchmarks.gpu.wheels import unpack

    unpack()
    from rich.console import Console

    from tests.benchmarks.gpu.run import OUTPUT, machine, run

    console = Console(width=max(120, Console().width))
    console.print(", ".join(f"{name} {value}" for name, value in machine().items() if value), highlight=False)
    output = Path(options[options.index("--output") + 1]) if "--output" in options else OUTPUT
    failed = run(lambda title, rows: console.print(table(title, rows)), "--tiny" in options, output)
    for line in failed:
        console.print(f"left out: {line}", style="red", highlight=False)
    console.print(f"written to {output}", highlight=False)


def main_peers(options: list[str]) -> None:
    from rich.console import Console

    from tests.benchmarks.peers.run import run

    console = Console(width=max(120, Console().width))
    run(
        lambda title, rows: console.print(table(title, rows)),
        lambda line: console.print(line, highlight=False),
        options,
    )


def main_arms(options: list[str]) -> None:
    from tests.benchmarks.gpu.wheels import unpack

    unpack()
    from rich.console import Console

    from tests.benchmarks.arms import run

    console = Console(width=max(120, Console().width))
    run(console.print, lambda line: console.print(line, highlight=False), options)


def table(title: str, rows: list[Any]) -> Any:
    """Returns rows as a table; rows that miss their target are marked."""
    from rich.table import Table

    found = Table("", "value", "baseline", "ratio", "reach", title=title, title_justify="left")
    for row in rows:
        mark = "[red]short of[/] " if row.reached is False else ""
        found.add_row(row.name, *_cells(row), f"{mark}{row.reach}")
    return found


def _cells(row: Any) -> tuple[str, str, str]:
    number = ",.0f" if row.value >= 100 else ".3g"
    baseline = "" if row.baseline is None else f"{row.baseline:{number if row.baseline >= 100 else '.3g'}}"
    return f"{row.value:{number}} {row.unit}", baseline, "" if row.ratio is None else f"{row.ratio:,.3g} x"


if __name__ == "__main__":
    others = {"gpu": main_gpu, "peers": main_peers, "arms": main_arms}
    if sys.argv[1:2] and sys.argv[1] in others:
        others[sys.argv[1]](sys.argv[2:])
    else:
        main(sys.argv[1:])
