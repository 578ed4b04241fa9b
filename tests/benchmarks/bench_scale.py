"""Prepare, collect (two fake sources), rewards and select over a million synthetic rows, on a local Ray cluster."""

import json
import subprocess
import sys

from tests.benchmarks.measure import Row

SMALL, LARGE = 100_000, 1_000_000
MB = 1_000_000
WORKERS = ("write_corpus", "MapWorker")
"""Ray's titles of the processes that do a stage's work."""


def run(small_rows: int = SMALL, large_rows: int = LARGE) -> list[Row]:
    small, large = run_once(small_rows), run_once(large_rows)
    return [*times(small, large), *memory(small, large), Row("scale, disk", large["disk_bytes"] / MB, "MB")]


def run_once(num_rows: int) -> dict:
    """Returns the figures of one run, in a separate process: a second run in the same one would start warm."""
    command = [sys.executable, "-m", "tests.benchmarks.scale_run", str(num_rows)]
    # Ray may have printed warnings before the last line.
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def times(small: dict, large: dict) -> list[Row]:
    """Returns wall time per stage and in total, and total CPU time, which depends less on other load."""
    growth = large["rows"] / small["rows"]
    out = []
    for before, after in zip(stages(small), stages(large), strict=True):
        title = f"scale, {after['stage']}, {large['rows']:,} rows"
        out.append(Row(title, large["rows"] / after["seconds"], "rows/s"))
        for name, unit in (("seconds", "s"), ("cpu_seconds", "processor s")):
            out.append(
                Row(f"{title}, against {growth:g} x fewer", after[name], unit, growth * before[name], "<= 1.1 x")
            )
    return out


def stages(figures: dict) -> list[dict]:
    total = {name: sum(stage[name] for stage in figures["stages"]) for name in ("seconds", "cpu_seconds")}
    return [*figures["stages"], {"stage": "all"} | total]


def memory(small: dict, large: dict) -> list[Row]:
    """Returns memory growth after a stage's first tenth, and peak: of the driver and the largest worker, in both runs."""
    out = []
    for title, names in (("driver", ("driver",)), ("the worker with most", WORKERS)):
        for figure, reach in (("growth", "< 300"), ("peak", "")):
            few, many = (most(figures, names, figure) for figures in (small, large))
            out.append(Row(f"scale, {figure} of {title}, against the smaller run", many, "MB", few, reach))
    return out


def most(figures: dict, names: tuple[str, ...], figure: str) -> float:
    entries = [entry for stage in figures["stages"] for entry in stage["memory"] if entry["name"] in names]
    return max(entry[figure] for entry in entries) / MB
