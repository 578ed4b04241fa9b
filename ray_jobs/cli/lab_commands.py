"""Defines `profuser lab build`, `profuser lab twins` and `profuser lab ablate`."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli.options import RECIPES, Settings
from ray_jobs.runtime.progress import print_line

lab_app = typer.Typer(
    help="Build tiny models and run ablations on them. This laboratory shows fusion at work on two CPU cores."
)


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
    """Train variants of a recipe (arms) and compare them.

    All arms share one base run, so the sources run only once. Run the command again to continue.
    """
    from profuser.ablation.arms import SCHEDULES, find_arms, plan_ablation
    from ray_jobs.cli.ablate import print_plan, run_ablation

    chosen = find_arms(arms or [SCHEDULES], RECIPES)
    placed = [*(settings or ()), *([f"storage={storage}"] if storage else [])]
    ablation = plan_ablation(recipe, placed, chosen, seeds, RECIPES)
    if dry_run:
        print_plan(ablation)
    else:
        run_ablation(ablation)
