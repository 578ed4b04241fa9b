"""Loads a recipe by file or shipped name, with its layers and `--set key.path=value`; every error is one line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from profuser.errors import UserError
from profuser.recipe.layers import find_recipe, merge, read_layers, read_tree, sections_in
from profuser.recipe.models import Recipe


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), shipped: Path | None = None, arm: Path | None = None
) -> Recipe:
    """Reads and validates a recipe: its base, its own settings, an arm, and overrides, each merged over the previous ones.

    Args:
        path: the YAML file, or the name of a shipped recipe.
        overrides: `key.path=value` settings; the value is parsed as YAML.
        shipped: folder of the recipes that may be given by name.
        arm: file of an arm; the run is then named `{name}-{arm}`.

    Raises:
        UserError: a file is missing or not YAML, or a setting is wrong; the message names file and key.
    """
    file = find_recipe(str(path), Path(), shipped, f"recipe {path}")
    tree = read_layers(file, shipped)
    if arm:
        tree = merge(tree, read_tree(arm))
        if isinstance(tree.get("name"), str):
            tree["name"] += f"-{arm.stem}"
    apply_overrides(tree, overrides)
    return parse_recipe(tree, f"{file} --arm {arm.stem}" if arm else str(file))


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Validates settings as a recipe; its UserError names `where` and the key at fault."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"recipe {where}: {explain(error)}") from None


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets `key.path=value` in a tree of mappings and lists, in place; a list item is named by number or by its `name`."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"--set {override}: expected key.path=value")
        keys = path.split(".")
        node: Any = tree
        for key in keys[:-1]:
            node = _child(node, key, override)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
        if isinstance(node, list):
            node[_position(node, keys[-1], override)] = value
        else:
            node[keys[-1]] = value


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    child = node.get(key)
    if child is None:
        child = node[key] = {}
    if not isinstance(child, (dict, list)):
        raise UserError(f"--set {override}: {key!r} is a value and has no settings inside")
    return child


def _position(items: list[Any], key: str, override: str) -> int:
    for index, item in enumerate(items):
        if key == str(index) or (isinstance(item, dict) and item.get("name") == key):
            return index
    names = ", ".join(str(item.get("name", i)) if isinstance(item, dict) else str(i) for i, item in enumerate(items))
    raise UserError(f"--set {override}: no item {key!r}; there are: {names}")


def explain(error: ValidationError) -> str:
    """Formats a validation error as one line: each fault with its dotted key, and the nearest key to a misspelt one."""
    return "; ".join(_explain_one(fault) for fault in error.errors())


def _explain_one(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location) or "recipe"
    if fault["type"] == "extra_forbidden":
        known = _keys_at(Recipe, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{key}: no such setting; {hint}"
    if fault["type"] == "missing":
        return f"{key}: is required"
    message = fault["msg"].removeprefix("Value error, ")
    text = f"{key}: {message[:1].lower() + message[1:]}"
    # A whole section would bury the message.
    return text if isinstance(fault["input"], dict) else f"{text} (got {str(fault['input'])[:80]!r})"


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> set[str]:
    """Returns the names of the settings inside a section, found by walking its models along a location."""
    models = {model}
    for part in location:
        # In a union, pydantic's location includes the kind: only the settings of that kind apply.
        models = {owner for owner in models if part in _kinds(owner)} or models
        inside: set[type[BaseModel]] = set()
        for owner in models:
            field = owner.model_fields.get(part)
            inside |= sections_in(field.annotation) if field else set()
        models = inside or models
    return {name for owner in models for name in owner.model_fields}


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """Returns the values of a model's `kind`, the discriminator of its union."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()
