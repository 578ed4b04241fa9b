"""Reads what verifiers need of a record, apart from its texts: the tests of its code, and the JSON schema of its answer."""

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from profuser.corpus.rows import type_name
from profuser.corpus.values import ABSENT, RowFault, clean_text, find, is_blank
from profuser.recipe.preparing import FieldsConfig

DEFINITIONS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
)
CHECKS = (ast.Assert, ast.Call, ast.Raise)


def extras_of(record: Mapping[str, Any], fields: FieldsConfig) -> dict[str, Any]:
    """Returns a record's `tests` (list of texts) and `json_schema` (text), those of them that the recipe names and it has.

    Raises:
        RowFault: the tests are no Python code or check nothing, or the schema is no JSON object.
    """
    found = {
        "tests": _tests(record, fields.tests, fields.entry_point) if fields.tests else None,
        "json_schema": _schema(record, fields.json_schema) if fields.json_schema else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _tests(record: Mapping[str, Any], field: str, entry_point: str | None) -> list[str] | None:
    value = find(record, field)
    if is_blank(value):
        return None
    texts = [clean_text(text, field) for text in (value if isinstance(value, list) else [value])]
    if entry_point:
        function = clean_text(find(record, entry_point), entry_point)
        if not function.isidentifier():
            raise RowFault(f"{entry_point} is no name of a function ({ascii(function)[:40]})")
        texts = [f"{text}\n\ncheck({function})" for text in texts]
    for text in texts:
        _check_test(text, field)
    return texts


def _check_test(text: str, field: str) -> None:
    """Raises RowFault unless a test is Python code that checks something when it runs: any answer would pass it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowFault(f"{field} is no Python code ({error})") from None
    runs = [node for node in tree.body if not isinstance(node, DEFINITIONS)]
    if not any(isinstance(node, CHECKS) for each in runs for node in ast.walk(each)):
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        remedy = "; set corpus.fields.entry_point" if "check" in names else ""
        raise RowFault(f"{field} checks nothing (neither an assert nor a call is run{remedy})")


def _schema(record: Mapping[str, Any], field: str) -> str | None:
    value = find(record, field)
    if is_blank(value):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowFault(f"{field} is not JSON") from None
    if value is ABSENT or not isinstance(value, dict):
        raise RowFault(f"{field} is {type_name(value)}, expected a JSON schema, which is an object")
    return json.dumps(value)
