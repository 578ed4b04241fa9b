"""Defines a record as read from a corpus, or the reason that it is unusable."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

EXCERPT_CHARS = 160
TRUNCATED = "the file is truncated here"
TURN_FIELDS = (("role", "content"), ("from", "value"))
"""Fields of a turn: its role and its text."""
CALL_FIELDS = ("tool_calls", "function_call")
"""Fields of a turn that calls tools, and that may have no text."""
Unit = Literal["line", "record"]


@dataclass(frozen=True)
class RawRow:
    """One record as read, or the reason that it is unusable."""

    file: str
    """Path or URI of the file, or `hub:NAME`."""
    line: int
    """Position from 1: the line in JSONL; the record's number in a JSON list, a Parquet file or a Hub dataset (see `unit`)."""
    record: dict[str, Any] | None
    fault: str | None = None
    excerpt: str = ""
    """Beginning of the text; empty for a record without text (Parquet, Hub)."""
    unit: Unit = "line"
    """Unit of `line`."""


def make_row(label: str, number: int, record: Any, text: str = "", unit: Unit = "line") -> RawRow:
    """Builds the row of a parsed value; `text` is what it was parsed from. A list of turns counts as a record of messages."""
    excerpt = text[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()
    if isinstance(record, list) and record and is_turn(record[0]):
        record = {"messages": record}
    if not isinstance(record, dict):
        return RawRow(label, number, None, f"a record must be an object (this is {type_name(record)})", excerpt, unit)
    if not _encodable(text):
        return RawRow(label, number, None, "not UTF-8", excerpt, unit)
    return RawRow(label, number, record, None, excerpt, unit)


def is_turn(value: Any) -> bool:
    """Returns whether a value has the fields of a conversation's turn."""
    return isinstance(value, Mapping) and any(
        role in value and any(field in value for field in (text, *CALL_FIELDS)) for role, text in TURN_FIELDS
    )


def excerpt_of(record: Mapping[str, Any] | None) -> str:
    """Returns the beginning of a record as JSON, in ASCII."""
    return json.dumps(record, default=str)[:EXCERPT_CHARS] if record else ""


def type_name(value: Any) -> str:
    """Names the type of a JSON value for a message."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _encodable(text: str) -> bool:
    """Returns False if the text holds surrogate escapes of bytes that were not UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
