"""Defines the `profuser` command line. Exit codes: 0 done, 1 the run failed, 2 user error (one line, no traceback)."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from profuser.errors import ProfuserError, UserError
from ray_jobs.cli.lab_commands import lab_app
from ray_jobs.cli.options import Arm, RecipePath, RunName, Settings, Storage, load
from ray_jobs.cli.serve import serve
from ray_jobs.runtime.progress import print_line

if TYPE_CHECKING:
    from profuser.run.fusion_run import FusionRun

INTERRUPTED = 130
DEMO_QUESTION = "Put the letters h b a i in alphabetical order."

app = typer.Typer(
    help="Fuse several large language models into one. On each example, the best source model is the teacher.",
    epilog="First steps: `profuser demo`, then `profuser plan RECIPE` and `profuser run RECIPE`.\n\n"
    "Exit codes: 0 done, 1 the run failed, 2 wrong usage or recipe, 130 interrupted, 143 stopped by SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    recipe: RecipePath,
    settings: Settings = None,
    arm: Arm = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE", help="Delete the results of this and all later stages, then rebuild them. Repeatable."
        ),
    ] = None,
    until: Annotated[
        str, typer.Option(metavar="STAGE", help="Stop after this stage. A later run continues from there.")
    ] = "report",
    only: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE[/PART]",
            help="Run only this stage, e.g. fuse, or this part of one, e.g. collect/mpt. Its inputs must be finished.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, corpus, models and tokenizers without starting anything.")
    ] = False,
) -> None:
    """Run a fusion from corpus to report.

    Stages, in order: prepare, collect, rewards, signals, select, rounds, fuse, evaluate, benchmarks, judge, report. Finished ones
    are skipped: run the same command again to continue after an interruption.
    """
    from profuser.run.stages import STAGES

    if only and until != STAGES[-1]:
        raise UserError("--only, --until: give only one of them")
    loaded = load(recipe, settings, arm)
    if dry_run:
        from ray_jobs.cli.dry_run import check_recipe

        check_recipe(loaded, recipe)
        return
    from ray_jobs.pipeline.pipeline import run_pipeline

    run_pipeline(loaded, redo or (), until, only, _print_results)
    if (only or until) != STAGES[-1]:
        option = "--only" if only else "--until"
        print_line(f"stopped after {only or until}; run without {option} to continue")


@app.command()
def demo(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, or the name of a shipped one.")] = "demo",
    settings: Settings = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="Prompt for the served model at the end.", show_default="the first held-out one, or the demo's"
        ),
    ] = None,
) -> None:
    """Run a fusion and query the result. By default fuses three tiny models, then serves the fused one."""
    from ray_jobs.cli.demo import run_demo

    run_demo(load(recipe, settings), question or (DEMO_QUESTION if recipe == "demo" else None))


@app.command()
def plan(
    recipe: RecipePath,
    settings: Settings = None,
    arm: Arm = None,
    num_probed: Annotated[
        int | None,
        typer.Option(
            "--probe",
            metavar="N",
            help="Start the sources, run N corpus rows through each, and extrapolate time and cost, with error bars.",
        ),
    ] = None,
) -> None:
    """Estimate the cost of a run. Prints stages, rows, tokens, disk and devices; starts nothing without --probe."""
    from ray_jobs.cli.plan import print_plan, print_probe

    loaded = load(recipe, settings, arm)
    if num_probed is None:
        print_plan(loaded)
    else:
        print_probe(loaded, num_probed)


@app.command()
def doctor(storage: Storage = "runs") -> None:
    """Check this machine. Reports GPU, memory, vLLM, Ray and storage. Exits with 1 if something is missing; says how to fix it."""
    from ray_jobs.cli.doctor import examine

    raise typer.Exit(0 if examine(storage) else 1)


@app.command()
def status(
    name: RunName,
    storage: Storage = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's summary.json.")] = False,
) -> None:
    """Show the progress of a run. Prints the state of every stage, and the driver that is working on it."""
    from ray_jobs.cli.status import print_status, read_summary

    summary = read_summary(name, storage)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        print_status(summary)


@app.command()
def report(name: RunName, storage: Storage = "runs") -> None:
    """Print a run's results and rewrite its HTML report. The run must be finished up to evaluate."""
    from profuser.artifacts.lock import RunLock
    from profuser.run.finding import find_run
    from ray_jobs.stages.report import print_report, write_run_report

    found = find_run(name, storage)
    with RunLock(found.folder):
        write_run_report(found)
    print_report(found)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, or their folders.")],
    storage: Storage = "runs",
    group_seeds: Annotated[
        bool, typer.Option("--group-seeds", help="Pool runs that differ only in fuse.seed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare the results of several runs.

    Each fused model is compared with its target and with the fused model of the first run. Also prints which settings differ.
    """
    from ray_jobs.cli.compare import print_comparison

    print_comparison(names, storage, group_seeds, as_json)


@app.command()
def evaluate(
    name: RunName,
    storage: Storage = "runs",
    redo: Annotated[
        bool, typer.Option("--redo", help="Delete the results of evaluate and of all later stages, then repeat them.")
    ] = False,
) -> None:
    """Evaluate a run's models on its held-out rows. Runs every stage of the run that is not finished, and prints the results."""
    from profuser.run.finding import find_run
    from ray_jobs.pipeline.pipeline import run_pipeline

    run_pipeline(find_run(name, storage).recipe, ["evaluate"] if redo else (), after_stage=_print_results)


def _print_results(stage: str, run: "FusionRun") -> None:
    """Prints the results as soon as the report is written: the run may still end with the error of an optional stage."""
    if stage == "report":
        from ray_jobs.stages.report import print_report

        print_report(run)


app.command()(serve)
app.add_typer(lab_app, name="lab", no_args_is_help=True)


def main() -> None:
    """Runs the `profuser` command."""
    run_app(app, "profuser")


def run_app(app: typer.Typer, name: str) -> None:
    """Runs a command under this name; a ProfuserError becomes one line on stderr and an exit code."""
    try:
        app(prog_name=name)
    except UserError as error:
        _fail(error, 2)
    except ProfuserError as error:
        _fail(error, 1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("profuser: interrupted; finished work is kept, run again to continue", file=sys.stderr)
        raise


def _fail(error: ProfuserError, code: int) -> None:
    print(f"profuser: {error}", file=sys.stderr)
    sys.exit(code)
