"""Defines `python -m ray_jobs STAGE RECIPE`: each stage as a separate job, for `ray job submit`."""

from typing import Annotated

import typer

from profuser.run.stage import Stage
from profuser.run.stages import REGISTRY
from ray_jobs.cli.app import run, run_app
from ray_jobs.cli.options import Arm, RecipePath, Settings


def stage_app() -> typer.Typer:
    """Returns a command for every stage, and `run` for all of them."""
    app = typer.Typer(
        help="Run one stage of a fusion as a separate job. Its inputs must be finished. `run` runs all, like `profuser run`.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.command("run")(run)
    for stage in REGISTRY.values():
        app.command(stage.name)(_command(stage))
    return app


def main() -> None:
    """Runs the command that the arguments name."""
    run_app(stage_app(), "python -m ray_jobs")


def _command(stage: Stage):
    """Returns `profuser run RECIPE --only STAGE` as a command."""
    kind = stage.part_option
    one_part = typer.Option(
        f"--{kind or 'part'}", metavar="NAME", hidden=kind is None, help=f"Run only this {kind}; by default all."
    )
    again = typer.Option("--redo", help="Delete its results and those of all later stages, then run it again.")

    def command(
        recipe: RecipePath,
        settings: Settings = None,
        arm: Arm = None,
        part: Annotated[str | None, one_part] = None,
        redo: Annotated[bool, again] = False,
    ) -> None:
        only = f"{stage.name}/{part}" if part else stage.name
        run(recipe, settings, arm, [stage.name] if redo else None, only=only)

    command.__doc__ = f"{stage.purpose} Finished parts are skipped."
    return command
