"""Prints every setting of a recipe with its type, default and meaning, as Markdown: `python -m profuser.recipe.reference`."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from profuser.config import EXECUTION
from profuser.recipe.models import Recipe

SCALARS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
HEAD = """# Every setting of a recipe

Printed by `python -m profuser.recipe.reference`. Any of them can be set on the command line: `--set KEY.PATH=VALUE`.
*e* marks execution settings: where and how fast, not what. They are no part of a run's identity and may change between attempts.
"""


def reference() -> str:
    """Returns the whole page."""
    return "\n".join([HEAD, *_section("", Recipe, set())]).rstrip() + "\n"


def _section(path: str, config: type[BaseModel], done: set[type]) -> Iterator[str]:
    """Yields the lines of a section's table, then those of the sections inside that are not yet described."""
    done.add(config)
    about = " ".join((config.__doc__ or "").split())
    yield f"## {path or 'The recipe'}\n\n{about}\n\n| key | type | default | |\n|---|---|---|---|"
    inside: list[tuple[str, type[BaseModel]]] = []
    for name, field in config.model_fields.items():
        mark = " *e*" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(EXECUTION) else ""
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{name}`{mark} | {_type(field.annotation)} | {_default(field)} | {meaning} |"
        for part, kind in _configs(field.annotation):
            inside.append((f"{path}.{name}{part}".lstrip("."), kind))
    yield ""
    for name, kind in inside:
        if kind not in done:
            yield from _section(name, kind, done)


def _configs(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields the sections that a type holds, each with the suffix of its key: `[]` in a list, the kind in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        kinds = get_args(kind.annotation) if kind else ()
        yield (f" (kind: {kinds[0]})" if len(kinds) == 1 else ""), annotation
        return
    listed = "[]" if get_origin(annotation) is tuple else ""
    for argument in get_args(annotation):
        for part, kind in _configs(argument):
            yield f"{listed}{part}", kind


def _type(annotation: Any) -> str:
    """Describes a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return SCALARS.get(annotation, "any")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(reference(), end="")
