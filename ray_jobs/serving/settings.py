"""Applies the command line's settings of models: `VALUE` for all served models, `MODEL=VALUE` for one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from profuser.errors import UserError
from profuser.serving.options import ServeConfig
from profuser.serving.resolve import read_template

LORA, TEMPLATE, ARGUMENTS = "adapters", "chat_template", "template_arguments"
OPTIONS = {LORA: "--lora"}
"""Command-line options that are not spelt as their setting."""


def with_model_settings(config: ServeConfig, given: Mapping[str, Sequence[str]]) -> ServeConfig:
    """Returns the serve config with settings of its models.

    Args:
        config: the served models.
        given: for each setting of `ServedModel`, the values on the command line. A value for one model counts more than one for
            all; an adapter without a model belongs to the first.

    Raises:
        UserError: a value is invalid.
    """
    models = {model.name: model.model_dump() for model in config.models}
    for key, values in given.items():
        split = [_split(value, models) for value in values]
        for name, value in sorted(split, key=lambda pair: pair[0] is not None):
            option = OPTIONS.get(key, f"--{key.replace('_', '-')}")
            found = _value(key, value, option)
            if key == LORA:
                models[name or config.models[0].name][key] |= found
                continue
            for each in [name] if name else models:
                models[each][key] = found
    return ServeConfig.parse(config.model_dump() | {"models": list(models.values())}, "serve")


def _split(value: str, models: Mapping[str, Any]) -> tuple[str | None, str]:
    """Returns the model that a value names, if any, and the rest."""
    name, equals, rest = value.partition("=")
    return (name, rest) if equals and name in models else (None, value)


def _value(key: str, value: str, option: str) -> Any:
    if key == TEMPLATE:
        return read_template(value, option)
    if key == ARGUMENTS:
        try:
            found = yaml.safe_load(value)
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{option} {value}: write a mapping, for example '{{enable_thinking: false}}'")
        return found
    if key == LORA:
        name, equals, folder = value.partition("=")
        if not (equals and name and folder):
            raise UserError(
                f"{option} {value}: write NAME=FOLDER, or MODEL=NAME=FOLDER for a model that is not the first"
            )
        return {name: str(Path(folder).absolute()) if Path(folder).is_dir() else folder}
    return value
