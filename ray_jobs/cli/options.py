"""Arguments and options that several commands share, and the loading of their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from profuser.recipe.models import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the shipped recipes and arms."""

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe, such as demo.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Override a recipe setting, e.g. fuse.beta=0.5, or sources.mpt.model=FOLDER for a list item (by name or number). "
        "Repeatable.",
    ),
]
Arm = Annotated[
    str | None,
    typer.Option(
        "--arm",
        metavar="NAME",
        help="Apply an arm: a variant of the recipe with another schedule, or a baseline, e.g. sft-gt.",
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")]
Storage = Annotated[str, typer.Option(help="Folder or URI where the runs are stored.")]


def load(recipe: str, settings: list[str] | None, arm: str | None = None) -> Recipe:
    """Loads a recipe by path or shipped name, with an arm applied where one is given."""
    from profuser.recipe import find_arm, load_recipe

    return load_recipe(recipe, settings or (), RECIPES, None if arm is None else find_arm(arm, RECIPES))
