"""Base class of all recipe sections, and the marking of *execution* fields (where and how fast a stage runs)."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.fields import Field

EXECUTION = "execution"
LATER = "later"


def _valid_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups < 1:
        raise ValueError("the pattern needs a group in parentheses around the answer")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
"""A name that is valid in paths and in MLflow: lower-case letters, digits, `.`, `_` and `-`."""
Pattern = Annotated[str, AfterValidator(_valid_pattern)]
"""A regular expression that compiles and has a group."""


class Config(BaseModel):
    """A frozen recipe section; an unknown key is an error, and each field's docstring is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def execution_field(default: Any = ..., **constraints: Any) -> Any:
    """Defines a field that changes where or how fast a stage runs, never its result: fingerprints leave it out."""
    return Field(default, json_schema_extra={EXECUTION: True}, **constraints)


def later_field(default: Any, **constraints: Any) -> Any:
    """Defines a field that older recipes lacked: fingerprints leave it out at its default, so that older runs stay valid."""
    return Field(default, json_schema_extra={LATER: True}, **constraints)


def identity(config: BaseModel) -> dict[str, Any]:
    """Returns the part of a section that decides results: its fields in JSON form, without the execution fields and the later
    ones at their defaults."""
    out: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        marks = extra if isinstance(extra, dict) else {}
        value = getattr(config, name)
        if marks.get(EXECUTION) or (marks.get(LATER) and value == field.default):
            continue
        out[name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings and lists into one mapping from dotted paths to leaves, to compare recipes and for MLflow."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in items:
        out |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return out
