"""Validates answers that are JSON against a JSON schema."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from profuser.errors import UserError
from profuser.recipe.verifiers import JsonSchemaConfig
from profuser.rewards.fenced import last_block
from profuser.rewards.judges import Verdict

KEPT_SCHEMAS = 1024
NO_JSON = object()
DATA = ("const", "enum", "default", "examples")
"""Keywords whose values are data, not schemas."""


def with_schema(config: JsonSchemaConfig) -> JsonSchemaConfig:
    """Returns the configuration with the schema itself in place of its file; raises UserError if that cannot be read."""
    if not isinstance(config.json_schema, str):
        return config
    setting = f"rewards.{config.name}.json_schema"
    try:
        schema = yaml.safe_load(Path(config.json_schema).expanduser().read_text(encoding="utf-8"))
        json.dumps(schema)
    except OSError as error:
        raise UserError(
            f"{setting}: {config.json_schema}: {error.strerror or error}; give a file, or the schema"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{setting}: {config.json_schema} is neither JSON nor YAML: {_line(error)}") from None
    if not isinstance(schema, dict):
        raise UserError(f"{setting}: {config.json_schema} holds {type(schema).__name__}, expected an object")
    return config.model_copy(update={"json_schema": schema})


def check_schema(config: JsonSchemaConfig) -> None:
    """Raises UserError if the recipe's schema cannot be read or is no JSON schema."""
    schema = with_schema(config).json_schema
    if schema is not None and (fault := _fault(schema)):
        raise UserError(f"rewards.{config.name}.json_schema: not a JSON schema: {fault}")


class JsonSchema:
    """The rule of `json_schema`."""

    def __init__(self, config: JsonSchemaConfig):
        check_schema(config)
        schema = with_schema(config).json_schema
        self.own = None if schema is None else json.dumps(schema)

    def __call__(self, row: Mapping[str, Any], answer: str) -> Verdict:
        """Returns 1 if the schema accepts the answer, else 0; NaN if the row has none, or one that is no JSON schema."""
        text = self.own or row.get("json_schema")
        if text is None:
            return Verdict(math.nan)
        validator = _validator(text)
        if validator is None:
            return Verdict(math.nan, "without_valid_schema")
        found = json_of(answer)
        if found is NO_JSON:
            return Verdict(0.0, "without_json")
        try:
            return Verdict(1.0) if validator.is_valid(found) else Verdict(0.0, "against_schema")
        except RecursionError:
            return Verdict(0.0, "against_schema")


def json_of(answer: str) -> Any:
    """Returns the JSON value that an answer is, or that its last fenced block holds; NO_JSON if there is none."""
    for text in (answer, last_block(answer, ("json",))):
        try:
            return json.loads(text, parse_constant=_refuse) if text else NO_JSON
        except (ValueError, RecursionError):
            continue
    return NO_JSON


def _refuse(constant: str) -> NoReturn:
    """Refuses NaN and infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{constant} is no JSON")


@lru_cache(KEPT_SCHEMAS)
def _validator(text: str) -> Any:
    """Returns the validator of a schema, None if it is no schema."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = json.loads(text)
    # An empty registry: jsonschema's own would fetch references from the network.
    return None if _fault(schema) else validator_for(schema)(schema, registry=Registry())


def _fault(schema: Any) -> str | None:
    """Returns what is wrong with a schema, None if it is one whose references all lead into it."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, UnknownDialect, specification_with

    dialect = schema.get("$schema")
    if not isinstance(dialect, str | None):
        return "$schema is not text"
    try:
        specification = specification_with(dialect) if dialect else DRAFT202012
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        return f"{error.json_path}: {_line(error.message)}"
    except UnknownDialect:
        return f"its $schema, {dialect!r}, is unknown"
    resource = specification.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver_with_root(resource)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return f"the reference {reference!r} leads nowhere in it; put what it names under $defs"
    return None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            elif key not in DATA:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
