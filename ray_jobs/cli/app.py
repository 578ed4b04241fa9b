"""Defines the `profuser` command line. Exit codes: 0 done, 1 the run failed, 2 user error (one line, no traceback)."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from profuser.errors import ProfuserError, UserError
from ray_jobs.runtime.progress import print_line

INTERRUPTED = 130
RECIPES = Path(__file__).parents[1] / "recipes"
DEMO_QUESTION = "Put the letters h b a i in alphabetical order."

app = typer.Typer(
    help="Fuse several large language models into one. On each example, the best source model is the teacher.",
    epilog="First steps: `profuser demo`, then `profuser plan RECIPE` and `profuser run RECIPE`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lab_app = typer.Typer(help="Build and use the laboratory. Its tiny models show fusion at work on two CPU cores.")
app.add_typer(lab_app, name="lab", no_args_is_help=True)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe, such as demo.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Override a recipe setting, e.g. fuse.beta=0.5. Address list items by number or name. Repeatable.",
    ),
]
Arm = Annotated[
    str | None,
    typer.Option("--arm", metavar="NAME", help="Apply an experiment arm (a schedule or baseline), e.g. sft-gt."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")]
Storage = Annotated[str, typer.Option(help="Folder or URI where the runs are stored.")]


def load(recipe: str, settings: list[str] | None, arm: str | None = None):
    """Loads a recipe by path or shipped name, with an arm applied where one is given."""
    from profuser.recipe import find_arm, load_recipe

    return load_recipe(recipe, settings or (), RECIPES, None if arm is None else find_arm(arm, RECIPES))


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
        typer.Option(metavar="STAGE[/PART]", help="Run only this stage (fuse) or this part of one (collect/NAME)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, corpus, models and tokenizers without starting anything.")
    ] = False,
) -> None:
    """Run a fusion from corpus to report.

    Finished stages are skipped: run the same command again to continue after an interruption.
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

    done = run_pipeline(loaded, redo or (), until, only)
    if (only or until) == STAGES[-1]:
        from ray_jobs.stages.report import print_report

        print_report(done)
    else:
        option = "--only" if only else "--until"
        print_line(f"stopped after {only or until}; run without {option} to continue")


@app.command()
def demo(
    settings: Settings = None,
    question: Annotated[str, typer.Option(help="Prompt for the served model at the end.")] = DEMO_QUESTION,
) -> None:
    """Run the demo fusion and query the result. Fuses three tiny models, then serves the fused one."""
    from ray_jobs.cli.demo import run_demo

    run_demo(load("demo", settings), question)


@app.command()
def plan(
    recipe: RecipePath,
    settings: Settings = None,
    arm: Arm = None,
    num_probed: Annotated[
        int | None,
        typer.Option(
            "--probe", metavar="N", help="Run N corpus rows through every source and extrapolate, with error bars."
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
    """Check this machine. Reports GPU, memory, vLLM, Ray and storage, what is missing and how to fix it."""
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
    """Print a finished run's results. Also rewrites its report."""
    from profuser.artifacts.lock import RunLock
    from profuser.run.finding import find_run
    from ray_jobs.stages.report import print_report, write_run_report

    found = find_run(name, storage)
    with RunLock(found.folder):
        write_run_report(found)
    print_report(found)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, or their folders.")],
    storage: Storage = "runs",
    group_seeds: Annotated[
        bool, typer.Option("--group-seeds", help="Pool runs that differ only in fuse.seed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare several runs, each with its target and with the first run. Also prints how their recipes differ."""
    from ray_jobs.cli.compare import print_comparison

    print_comparison(names, storage, group_seeds, as_json)


@app.command()
def evaluate(
    name: RunName,
    storage: Storage = "runs",
    redo: Annotated[bool, typer.Option("--redo", help="Delete the measurements and repeat them.")] = False,
) -> None:
    """Evaluate a run's models on its held-out rows. Skips models that are evaluated already."""
    from profuser.run.finding import find_run
    from ray_jobs.pipeline.pipeline import run_pipeline
    from ray_jobs.stages.report import print_report

    print_report(run_pipeline(find_run(name, storage).recipe, ["evaluate"] if redo else ()))


@app.command()
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs whose fused models are served.")
    ] = None,
    storage: Storage = "runs",
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="NAME", help="Also serve from the first run: target, a source or all. Repeatable."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME=LOCATION", help="Serve a folder, URI, Hub name or models:/NAME@ALIAS. Repeatable."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    served_name: Annotated[str | None, typer.Option("--name", help="First model's name; by default the run's.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="YAML file listing API keys. Default: PROFUSER_API_KEYS, comma-separated.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Require no key; accept only local clients.")] = False,
    min_replicas: Annotated[int, typer.Option(min=0, help="Minimum replicas per model; 0: none while idle.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Maximum replicas per model.")] = 1,
    num_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs per replica. Default: what its parallelism needs, 0 without GPUs."),
    ] = None,
    write_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only write a config file for `serve deploy` and KubeRay.")
    ] = None,
) -> None:
    """Serve models behind an OpenAI-compatible API. Includes a playground web page; runs until Ctrl-C."""
    from ray_jobs.runtime.cluster import connected
    from ray_jobs.serving.app import check_serving, serve_file, start_server, wait_until_interrupted
    from ray_jobs.serving.models import serve_config

    replicas: dict[str, Any] = {"min_replicas": min_replicas, "max_replicas": max(min_replicas, max_replicas)}
    replicas |= {} if num_gpus is None else {"num_gpus": num_gpus}
    settings = {"insecure": insecure, "keys_file": str(keys.absolute()) if keys else None}
    arguments = (names or (), storage, beside or (), models or (), served_name, replicas, settings)
    if write_config:
        write_config.write_text(serve_file(serve_config(*arguments), host, port))
        print_line(f"written to {write_config}; deploy it with: serve deploy {write_config}")
        return
    with connected():
        config = serve_config(*arguments)
        check_serving(config, host)
        url = start_server(config, host, port)
        print_line(f"{', '.join(model.name for model in config.models)}: {url} (Ctrl-C stops it)")
        print_line(f"playground: {url.removesuffix('v1')}")
        wait_until_interrupted()


@lab_app.command("build")
def lab_build(
    output: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("lab"),
    corpus: Annotated[
        str | None, typer.Option(help="Train tiny sources on this instruction corpus instead of the six skills.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    skip_rows: Annotated[
        int, typer.Option(min=0, help="With --corpus: skip its first rows, which a run with corpus.max_rows uses.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished laboratory in this folder.")
    ] = False,
) -> None:
    """Build the laboratory's models. Trains three specialists and three reward models, on the six skills or on your corpus."""
    from ray_jobs.cli.lab import build

    build(output, corpus, seed, skip_rows, overwrite)


@lab_app.command("twins")
def lab_twins(
    output: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("twins"),
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
) -> None:
    """Build a laboratory with two more Llamas. They hold the skills of mpt and neox, for `lab ablate --arms homogeneous`."""
    from profuser.lab.twins import build_twins

    build_twins(output, seed, progress=lambda text: print_line(text))
    print_line(f"laboratory: {output}; use it with --set lab={output}")


@lab_app.command("ablate")
def lab_ablate(
    recipe: Annotated[str, typer.Option(help="Base recipe: a YAML file, or the name of a shipped one.")] = "demo",
    arms: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated arms, or a group: schedules, ablations, search, all. Default: schedules."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds with which every arm is trained.")] = 3,
    settings: Settings = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI where the runs are stored; by default the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs, their state and the estimated time left, without starting anything."
        ),
    ] = False,
) -> None:
    """Train and compare the arms of an ablation. All arms share one base run; run again to continue."""
    from profuser.ablation.arms import SCHEDULES, find_arms, plan_ablation
    from ray_jobs.cli.ablate import print_plan, run_ablation

    chosen = find_arms(arms or [SCHEDULES], RECIPES)
    placed = [*(settings or ()), *([f"storage={storage}"] if storage else [])]
    ablation = plan_ablation(recipe, placed, chosen, seeds, RECIPES)
    if dry_run:
        print_plan(ablation)
    else:
        run_ablation(ablation)


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
