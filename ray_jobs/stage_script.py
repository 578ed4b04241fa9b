"""What makes the file of a stage a script: `ray job submit ... -- python -m ray_jobs.collect RECIPE --source llama`.

Python calls the file that it runs `__main__`, and what is pickled from there no other node finds. So a script only names its stage,
and the pipeline imports the same file once more, under its real name.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli import Arm, RecipePath, Settings, run, run_app


def run_stage(stage: str, parts: str | None = None) -> None:
    """`profuser run RECIPE --only STAGE` as a command of its own.

    Args:
        stage: which.
        parts: what its parts are, where it has several, and so the option that chooses one: `source`, `reward`, `model`.
    """
    one_part = typer.Option(
        f"--{parts or 'part'}", metavar="NAME", hidden=parts is None, help=f"For this {parts} alone."
    )
    anew = typer.Option("--redo", help="Delete its results, and all that follow from them, and do it again.")

    def script(
        recipe: RecipePath,
        settings: Settings = None,
        arm: Arm = None,
        part: Annotated[str | None, one_part] = None,
        redo: Annotated[bool, anew] = False,
    ) -> None:
        run(recipe, settings, arm, [stage] if redo else None, only=f"{stage}/{part}" if part else stage)

    script.__doc__ = f"Run the stage {stage} of a fusion, or what is left of it; what it reads must be finished."
    _run(script)


def run_all() -> None:
    """`profuser run RECIPE` as a command of its own."""
    _run(run)


def _run(command: Callable[..., None]) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app, f"python -m ray_jobs.{Path(sys.argv[0]).stem}")
