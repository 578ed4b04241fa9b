"""User-defined verifiers: imports the function, digests its source, and reports its errors. Light to import."""

import hashlib
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from profuser.errors import UserError
from profuser.recipe.verifiers import CallableConfig

Function = Callable[[list[dict[str, Any]], str, str], Any]
REMEDY = "install its package or put its folder on PYTHONPATH, on every node"


def load_callable(config: CallableConfig) -> Function:
    """Imports the function that a recipe names; raises UserError with the reason if that fails."""
    module_name, _, name = config.path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise _mistake(config, f"cannot be imported: {_describe(error)}; {REMEDY}") from error
    if not callable(function):
        found = f"module {module_name} has no {name}" if function is None else f"it is a {type(function).__name__}"
        raise _mistake(config, f"is not a function: {found}")
    return function


def source_digest(config: CallableConfig) -> str:
    """Returns sixteen hex digits of the SHA-256 of the function's file: an edit invalidates scores. Imports only parent packages.

    Raises:
        UserError: no such module exists.
    """
    module_name = config.path.partition(":")[0]
    try:
        found = importlib.util.find_spec(module_name)
    except Exception as error:  # a parent package is imported, which may raise anything
        raise _mistake(config, f"cannot be imported: {_describe(error)}; {REMEDY}") from error
    if found is None:
        raise _mistake(config, f"cannot be imported: no module named {module_name!r}; {REMEDY}")
    file = Path(found.origin or "")
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()[:16]


def call_function(function: Function, config: CallableConfig, row: Mapping[str, Any], answer: str) -> float:
    """Returns the function's reward for an answer to a corpus row; raises UserError if it fails or returns no finite number."""
    from profuser.corpus.tool_turns import as_turns
    from profuser.corpus.turns import Message

    messages = as_turns([Message(message["role"], message["content"]) for message in row["messages"]])
    try:
        value = function(messages, answer, row["response"])
    except Exception as error:  # the user's code may raise anything
        raise _mistake(config, f"raised {_describe(error)} on row {row['row_id']!r}") from error
    if not isinstance(value, Real) or not math.isfinite(value):
        what = f"returned {str(value)[:80]!r} ({type(value).__name__}) on row {row['row_id']!r}"
        raise _mistake(config, f"{what}; it must return a finite number")
    return float(value)


def _mistake(config: CallableConfig, what: str) -> UserError:
    return UserError(f"rewards.{config.name}.path: {config.path} {what}")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
