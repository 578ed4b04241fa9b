"""The command line. Exit codes: 0 done, 1 the run failed, 2 the user's mistake (one line, no traceback)."""

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
    help="Fuse several large language models into one: each example taught by the better of them.",
    epilog="Start with `profuser demo`, then `profuser plan RECIPE` and `profuser run RECIPE`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lab_app = typer.Typer(help="The laboratory: tiny models and a corpus in which fusion can be seen on two CPU cores.")
app.add_typer(lab_app, name="lab", no_args_is_help=True)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a setting; list items by number or name. Repeatable."
    ),
]
Arm = Annotated[
    str | None,
    typer.Option("--arm", metavar="NAME", help="Run the recipe as this arm of an experiment: a schedule, a baseline."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")]
Storage = Annotated[str, typer.Option(help="Folder or URI that holds the runs.")]


def load(recipe: str, settings: list[str] | None, arm: str | None = None):
    """A recipe by path or by the name of a shipped one, as it is or as an arm of it."""
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
            metavar="STAGE", help="Delete a stage's results, and all that follow from them, and do them again."
        ),
    ] = None,
    until: Annotated[
        str, typer.Option(metavar="STAGE", help="Stop after this stage; a later run goes on from there.")
    ] = "report",
    only: Annotated[
        str | None,
        typer.Option(metavar="STAGE[/PART]", help="This stage alone (fuse), or a part of it (collect/NAME)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, the corpus and the models; start nothing.")
    ] = False,
) -> None:
    """Run a fusion, or what is left of it."""
    from profuser.run.stages import STAGES

    if only and until != STAGES[-1]:
        raise UserError("--only, --until: give one of them")
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
        print_line(f"stopped after {only or until}; without {option} it goes on")


@app.command()
def demo(
    settings: Settings = None,
    question: Annotated[str, typer.Option(help="What the served model is asked at the end.")] = DEMO_QUESTION,
) -> None:
    """Run the main job in the laboratory, and ask the served model a question."""
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
            "--probe", metavar="N", help="Start every source, put N rows to it, and extrapolate with error bars."
        ),
    ] = None,
) -> None:
    """Print stages, rows, estimated tokens, disk and devices, without starting anything; with --probe, from a measurement."""
    from ray_jobs.cli.plan import print_plan, print_probe

    loaded = load(recipe, settings, arm)
    if num_probed is None:
        print_plan(loaded)
    else:
        print_probe(loaded, num_probed)


@app.command()
def doctor(storage: Storage = "runs") -> None:
    """Say what this machine can do (GPU, memory, vLLM, Ray, storage) and what is missing."""
    from ray_jobs.cli.doctor import examine

    raise typer.Exit(0 if examine(storage) else 1)


@app.command()
def status(
    name: RunName,
    storage: Storage = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Show how far a run is."""
    from ray_jobs.cli.status import print_status, read_summary

    summary = read_summary(name, storage)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        print_status(summary)


@app.command()
def report(name: RunName, storage: Storage = "runs") -> None:
    """Print a finished run's tables, and write its report anew."""
    from profuser.artifacts.lock import RunLock
    from profuser.run.finding import find_run
    from ray_jobs.stages.report import print_report, write_run_report

    found = find_run(name, storage)
    with RunLock(found.folder):
        write_run_report(found)
    print_report(found)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...")],
    storage: Storage = "runs",
    group_seeds: Annotated[
        bool, typer.Option("--group-seeds", help="Take runs that differ in nothing but fuse.seed as one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for a program.")] = False,
) -> None:
    """Compare the results of runs with their target and with the first of them, and show in what their recipes differ."""
    from ray_jobs.cli.compare import print_comparison

    print_comparison(names, storage, group_seeds, as_json)


@app.command()
def evaluate(
    name: RunName,
    storage: Storage = "runs",
    redo: Annotated[bool, typer.Option("--redo", help="Measure anew.")] = False,
) -> None:
    """Measure a run's models on its held-out rows, where that is not done yet."""
    from profuser.run.finding import find_run
    from ray_jobs.pipeline.pipeline import run_pipeline
    from ray_jobs.stages.report import print_report

    print_report(run_pipeline(find_run(name, storage).recipe, ["evaluate"] if redo else ()))


@app.command()
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs whose fused models to host.")
    ] = None,
    storage: Storage = "runs",
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="NAME", help="Also the first run's target, a source by name, or all. Repeatable."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME=LOCATION", help="A folder, URI, Hub name or models:/NAME@ALIAS. Repeatable."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    served_name: Annotated[str | None, typer.Option("--name", help="Of the first model; by default the run's.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="YAML list of API keys; or PROFUSER_API_KEYS has them, with commas between.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask for no key; clients on this machine only.")] = False,
    min_replicas: Annotated[int, typer.Option(min=0, help="Fewest copies of each model; 0: only while asked.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most copies of each model.")] = 1,
    num_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of a copy; by default what its parallelism needs, where there are any."),
    ] = None,
    write_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start nothing: write a file for `serve deploy` and KubeRay.")
    ] = None,
) -> None:
    """Host fused models, and others beside them, behind an OpenAI API with a playground, until Ctrl-C."""
    from ray_jobs.runtime.cluster import connected
    from ray_jobs.serving.app import check_serving, serve_file, start_server, wait_until_interrupted
    from ray_jobs.serving.models import serve_config

    replicas: dict[str, Any] = {"min_replicas": min_replicas, "max_replicas": max(min_replicas, max_replicas)}
    replicas |= {} if num_gpus is None else {"num_gpus": num_gpus}
    settings = {"insecure": insecure, "keys_file": str(keys.absolute()) if keys else None}
    arguments = (names or (), storage, beside or (), models or (), served_name, replicas, settings)
    if write_config:
        write_config.write_text(serve_file(serve_config(*arguments), host, port))
        print_line(f"written to {write_config}; serve deploy {write_config}")
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
    output: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("lab"),
    corpus: Annotated[
        str | None, typer.Option(help="Instead of the skills: make tiny sources from this instruction corpus.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    skip_rows: Annotated[
        int, typer.Option(min=0, help="With --corpus: leave its first rows to a run with so many corpus.max_rows.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished laboratory in that folder.")
    ] = False,
) -> None:
    """Make the laboratory's models: three specialists and three reward models, of your corpus or of the six skills."""
    from ray_jobs.cli.lab import build

    build(output, corpus, seed, skip_rows, overwrite)


@lab_app.command("twins")
def lab_twins(
    output: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("twins"),
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Make the laboratory once more, with the other specialists' skills in Llamas too: for `lab ablate --arms homogeneous`."""
    from profuser.lab.twins import build_twins

    build_twins(output, seed, progress=lambda text: print_line(text))
    print_line(f"laboratory: {output}; use it with --set lab={output}")


@lab_app.command("ablate")
def lab_ablate(
    recipe: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped recipe.")] = "demo",
    arms: Annotated[
        list[str] | None,
        typer.Option(
            help="schedules, ablations, search, all, or arms by name, with commas between. By default schedules."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often every arm is trained.")] = 3,
    settings: Settings = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that holds the runs; by default the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the runs, what is done, and how long the rest may take; start nothing."),
    ] = False,
) -> None:
    """Train all arms of an experiment over one teachers' pass, and compare them in a table; run again to continue."""
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
    """The `profuser` command."""
    run_app(app, "profuser")


def run_app(app: typer.Typer, name: str) -> None:
    """A command under this name, as the shell calls it: an error of ours is one line and an exit code."""
    try:
        app(prog_name=name)
    except UserError as error:
        _fail(error, 2)
    except ProfuserError as error:
        _fail(error, 1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("profuser: interrupted; what is finished stays, run again to continue", file=sys.stderr)
        raise


def _fail(error: ProfuserError, code: int) -> None:
    print(f"profuser: {error}", file=sys.stderr)
    sys.exit(code)
