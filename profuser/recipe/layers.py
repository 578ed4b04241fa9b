"""A recipe in layers: the recipe that it builds on, its own differences, and an arm of an experiment on top."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from profuser.errors import UserError
from profuser.recipe.models import Recipe

ARMS = "arms"
"""Folder of the arms beside the shipped recipes: fragments that go over any recipe."""


def find_recipe(name: str, folder: Path, shipped: Path | None, who: str) -> Path:
    """The file of a recipe, by its path in a folder or by the name of a shipped one; UserError begins with `who` asks for it."""
    file = folder / Path(name).expanduser()
    if file.is_file():
        return file
    there = recipe_names(shipped) if shipped else []
    if shipped and name.removesuffix(".yaml") in there:
        return shipped / f"{name.removesuffix('.yaml')}.yaml"
    known = f"; shipped recipes: {', '.join(there)}" if there else ""
    raise UserError(f"{who}: no such file{known}")


def find_arm(name: str, shipped: Path) -> Path:
    """The file of a shipped arm; UserError where there is none of that name."""
    known = recipe_names(shipped / ARMS)
    if name not in known:
        raise UserError(f"--arm {name}: no such arm; there are: {', '.join(known)}")
    return shipped / ARMS / f"{name}.yaml"


def recipe_names(folder: Path) -> list[str]:
    """Names of the recipes, or of the arms, in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def read_layers(file: Path, shipped: Path | None = None, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe file over those of its `base`, which gives all but its name.

    Args:
        file: the YAML file.
        shipped: folder of the recipes that a `base` may name.
        above: the files that build on this one.

    Raises:
        UserError: a file is missing or no YAML, or a base leads back to a recipe that builds on it.
    """
    tree = read_tree(file)
    base = tree.pop("base", None)
    if base is None:
        return tree
    where = f"recipe {file}: base"
    if not isinstance(base, str):
        raise UserError(f"{where}: expected the name of a shipped recipe or a path, got {str(base)[:80]!r}")
    below = find_recipe(base, file.parent, shipped, f"{where} {base!r}")
    above = (*above, file.resolve())
    if below.resolve() in above:
        raise UserError(f"{where} {base!r} leads back to {below}, which builds on this recipe")
    under = read_layers(below, shipped, above)
    # Two recipes of one name would be one run.
    under.pop("name", None)
    return merge(under, tree)


def read_tree(file: Path) -> dict[str, Any]:
    """The settings in a YAML file; UserError where it cannot be read, or holds something else."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"recipe {file}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {file}: expected a mapping of settings, found {type(tree).__name__}")
    return tree


def merge(under: Mapping[str, Any], over: Mapping[str, Any], model: type[BaseModel] | None = Recipe) -> dict[str, Any]:
    """Settings over others: mappings are merged, all else is replaced, lists too.

    A mapping of another `kind` is replaced as well where the kinds are different things: an epoch is no step.

    Args:
        under: the settings below.
        over: those that win.
        model: the section that both are of; None where it is not known.
    """
    out = dict(under)
    for key, value in over.items():
        field = model.model_fields.get(key) if model else None
        sections = models_in(field.annotation) if field else set()
        below = out.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            other = len(sections) > 1 and value.get("kind", below.get("kind")) != below.get("kind")
            value = value if other else merge(below, value, sections.pop() if len(sections) == 1 else None)
        out[key] = value
    return out


def models_in(annotation: Any) -> set[type[BaseModel]]:
    """The sections that a setting may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {found for argument in get_args(annotation) for found in models_in(argument)}
