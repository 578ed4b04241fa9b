"""Merges the layers of a recipe: its base, its own settings, and an arm of an experiment on top."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from profuser.errors import UserError
from profuser.recipe.models import Recipe

ARMS = "arms"
"""Folder of the arms, next to the shipped recipes: fragments that can be merged over any recipe."""


def find_recipe(name: str, folder: Path, shipped: Path | None, who: str) -> Path:
    """Finds a recipe file by its path in a folder or by the name of a shipped recipe; its UserError begins with `who`."""
    file = folder / Path(name).expanduser()
    if file.is_file():
        return file
    names = recipe_names(shipped) if shipped else []
    if shipped and name.removesuffix(".yaml") in names:
        return shipped / f"{name.removesuffix('.yaml')}.yaml"
    known = f"; shipped recipes: {', '.join(names)}" if names else ""
    raise UserError(f"{who}: no such file{known}")


def find_arm(name: str, shipped: Path) -> Path:
    """Finds the file of a shipped arm; raises UserError if there is none of that name."""
    known = recipe_names(shipped / ARMS)
    if name not in known:
        raise UserError(f"--arm {name}: no such arm; there are: {', '.join(known)}")
    return shipped / ARMS / f"{name}.yaml"


def recipe_names(folder: Path) -> list[str]:
    """Returns the names of the recipes, or of the arms, in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def read_layers(file: Path, shipped: Path | None = None, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads the settings of a recipe file, merged over those of its `base` (all but the base's name).

    Args:
        file: the YAML file.
        shipped: folder of the recipes that a `base` may name.
        above: the files that build on this one.

    Raises:
        UserError: a file is missing or not YAML, or a base leads back to a recipe that builds on it.
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
    # Two recipes with the same name would be the same run.
    under.pop("name", None)
    return merge(under, tree)


def read_tree(file: Path) -> dict[str, Any]:
    """Reads the settings in a YAML file; raises UserError if it cannot be read or is not a mapping."""
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
    """Merges settings over others: mappings are merged, everything else is replaced, lists too.

    A mapping is also replaced if its `kind` differs and each kind is a section of its own (epochs and steps, for example).

    Args:
        under: the settings below.
        over: the settings that take precedence.
        model: the section that both belong to; None if it is not known.
    """
    out = dict(under)
    for key, value in over.items():
        field = model.model_fields.get(key) if model else None
        sections = sections_in(field.annotation) if field else set()
        below = out.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            other = len(sections) > 1 and value.get("kind", below.get("kind")) != below.get("kind")
            value = value if other else merge(below, value, sections.pop() if len(sections) == 1 else None)
        out[key] = value
    return out


def sections_in(annotation: Any) -> set[type[BaseModel]]:
    """Returns the sections that a setting may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {found for argument in get_args(annotation) for found in sections_in(argument)}
