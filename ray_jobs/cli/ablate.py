"""Implements `profuser lab ablate`: runs the base and all arms in one process, one run after another, then writes the table."""

import os
import tempfile
import time
from pathlib import Path

from profuser.ablation.arms import Ablation, ArmRun, time_left
from profuser.ablation.plot import ablation_plot
from profuser.ablation.results import Results, gather_results
from profuser.ablation.table import as_json, flat_rows, markdown, notes, render, table_cost
from profuser.artifacts.lock import RunLock
from profuser.errors import ProfuserError, one_line
from profuser.report.tables.table import csv_text, new_table
from profuser.run.stages import FUSED
from ray_jobs.cli.doctor import GIB
from ray_jobs.pipeline.pipeline import run_pipeline
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.kept import Kept
from ray_jobs.runtime.progress import console, format_clock, print_line

DPI = 200


def run_ablation(ablation: Ablation) -> None:
    """Runs what is unfinished of the base and the arms, then writes the table. A failing arm, or benchmark of the base, stops no
    other.

    Raises:
        UserError: an input is missing, or an artifact was made under other settings; raised before anything starts.
        ProfuserError: the base failed; or some arms or benchmarks failed, raised once all others are done.
    """
    start = time.monotonic()
    ablation.base.check_inputs()
    ablation.check()
    failed: dict[str, str] = {}
    unmeasured: dict[str, str] = {}
    if len(ablation.finished()) < len(ablation.runs) or not _is_measured(ablation):
        with connected():
            unmeasured = run_base(ablation)
            for number, each in enumerate(ablation.runs, 1):
                if each.state != "finished":
                    _announce(ablation, each, number)
                    if error := _try(each):
                        failed[each.recipe.name] = error
    results = gather_results(ablation)
    write_table(ablation, results)
    print_table(ablation, results)
    print_line(f"this invocation took {format_clock(time.monotonic() - start)}")
    if failed:
        errors = "; ".join(f"{name}: {error}" for name, error in failed.items())
        absent = (
            " and are not in the table" if failed.keys().isdisjoint(m.recipe.name for m in ablation.measured()) else ""
        )
        raise ProfuserError(f"{len(failed)} of {len(ablation.runs)} runs failed{absent}; {errors}")
    if unmeasured:
        errors = "; ".join(f"{name}: {reason.removeprefix(f'{name}: ')}" for name, reason in unmeasured.items())
        raise ProfuserError(f"{len(unmeasured)} benchmarks failed and are not in the table; {errors}")


def run_base(ablation: Ablation) -> dict[str, str]:
    """Runs the base up to `select`, and measures the target and the sources.

    Returns:
        The benchmarks that failed, as parts of the stage, with the reasons.
    """
    from ray_jobs.stages.benchmarks import benchmarks
    from ray_jobs.stages.evaluate import evaluate

    base, failed = ablation.base, {}
    if not ablation.shared["select"].is_complete():
        run_pipeline(base.recipe, until="select")
    with RunLock(base.folder):
        for name in (name for name in base.evaluated() if name != FUSED):
            if not base.evaluate(name).is_complete():
                evaluate(base, name)
            with Kept() as kept:
                for benchmark in base.recipe.evaluate.benchmarks:
                    output = base.benchmark(name, benchmark)
                    if output.is_complete():
                        continue
                    try:
                        benchmarks(base, name, benchmark, kept)
                    except ProfuserError as error:
                        failed[output.stage] = one_line(error)
                        print_line(f"{output.stage} failed: {failed[output.stage]}; continuing with the rest")
    return failed


def print_plan(ablation: Ablation) -> None:
    """Prints the runs, their state and an estimate of the time left, without starting anything."""
    ablation.base.check_inputs()
    ablation.check()
    shared = [artifact.is_complete() for artifact in ablation.shared.values()]
    state = "finished" if all(shared) else f"{sum(shared)} of {len(shared)} parts"
    table = new_table(f"{len(ablation.runs)} runs of {len(ablation.arms)} arms over one base", "run")
    table.add_column("state")
    table.add_row(ablation.base.recipe.name, state)
    for each in ablation.runs:
        table.add_row(each.recipe.name, each.state)
    console.print(table)
    left = time_left(ablation)
    unknown = f", excluding stages that no run has finished yet ({', '.join(left.unknown)})" if left.unknown else ""
    print_line(f"time left: about {format_clock(left.seconds)} of stage time{unknown}")


def write_table(ablation: Ablation, results: Results) -> None:
    """Writes `table.csv`, `table.md`, `table.json` and `ablation.png` for the finished runs."""
    made = table_cost(ablation, machine())
    folder, name = ablation.folder, ablation.folder.uri.rpartition("/")[2]
    folder.write_bytes("table.csv", csv_text(flat_rows(results)).encode())
    folder.write_bytes("table.md", markdown(name, results, made).encode())
    folder.write_json("table.json", as_json(name, results, made))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "ablation.png"
        ablation_plot(results).savefig(file, dpi=DPI)
        folder.write_bytes(file.name, file.read_bytes())


def print_table(ablation: Ablation, results: Results) -> None:
    """Prints the tables, the cost, and the path of the written table."""
    for table in render(results):
        console.print(table)
    for note in (*notes(results), table_cost(ablation, machine()).text()):
        print_line(note)
    print_line(f"table: {ablation.folder.path('table.md')}")


def machine() -> str:
    """Returns a description of the driver's machine: cores, memory, GPUs."""
    import torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, {', '.join(names) or 'no GPU'}"


def _is_measured(ablation: Ablation) -> bool:
    return all(artifact.is_complete() for artifact in ablation.shared.values())


def _announce(ablation: Ablation, each: ArmRun, number: int) -> None:
    left = time_left(ablation)
    about = (
        "time left unknown so far" if left.unknown else f"about {format_clock(left.seconds)} of stage time left in all"
    )
    print_line(f"\nrun {number} of {len(ablation.runs)}: {each.recipe.name} ({each.state}); {about}")


def _try(each: ArmRun) -> str | None:
    """Runs an arm; returns its error, or None on success."""
    try:
        run_pipeline(each.recipe)
    except ProfuserError as error:
        print_line(f"{each.recipe.name} failed: {error}; continuing with the next run")
        return str(error)
    return None
