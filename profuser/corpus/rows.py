"""One record as it was found in a corpus, or why it is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

EXCERPT_CHARS = 160
Unit = Literal["line", "record"]


@dataclass(frozen=True)
class RawRow:
    """One record as it was found, or why it is none."""

    file: str
    """The file as the user would recognise it, or `hub:NAME`."""
    line: int
    """From 1: the line in JSONL; the record's number in a JSON list, a Parquet file or a Hub dataset (see `unit`)."""
    record: dict[str, Any] | None
    fault: str | None = None
    excerpt: str = ""
    """The beginning of the text; empty where there is a record but no text (Parquet, Hub)."""
    unit: Unit = "line"
    """What `line` counts."""


def row_of(label: str, number: int, record: Any, text: str = "", unit: Unit = "line") -> RawRow:
    """A row of a parsed value; `text` is what it was parsed from."""
    excerpt = text[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()
    if not isinstance(record, dict):
        return RawRow(label, number, None, f"a record must be an object (this is {kind_of(record)})", excerpt, unit)
    if not _encodable(text):
        return RawRow(label, number, None, "not UTF-8", excerpt, unit)
    return RawRow(label, number, record, None, excerpt, unit)


def excerpt_of(record: Mapping[str, Any] | None) -> str:
    """The beginning of a record as JSON, in ASCII."""
    return json.dumps(record, default=str)[:EXCERPT_CHARS] if record else ""


def kind_of(value: Any) -> str:
    """What a JSON value is, in plain words."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _encodable(text: str) -> bool:
    """False where bytes were no UTF-8 and stand in the text as escapes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
