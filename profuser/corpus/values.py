"""Reads values of a record: fields by name or dotted path, text without surrounding whitespace, and what counts as absent.

The reason for refusing a record has the form `what is wrong (details)`: the part before the bracket is the same for all such rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from profuser.corpus.rows import type_name

ABSENT = object()


class RowFault(Exception):  # noqa: N818
    """A record cannot be used; the message is the reason, in a few words."""


def find(record: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a field, given by its name or a dotted path (`data.turns.0.text`); ABSENT if there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return value


def is_blank(value: Any) -> bool:
    """Returns whether a value says nothing: absent, null, NaN (a table's missing value), whitespace, an empty list or object."""
    if value is ABSENT or value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, (str, list, dict)) and not (value.strip() if isinstance(value, str) else value)


def clean_text(value: Any, field: str, details: str = "") -> str:
    """Returns a text without surrounding whitespace.

    Raises:
        RowFault: the value is not text, is empty, or cannot be stored as UTF-8 without loss.
    """
    if not isinstance(value, str):
        raise RowFault(f"{field} is {type_name(value)}, expected text{details}")
    text = value.strip()
    if not text:
        raise RowFault(f"{field} is empty{details}")
    if "\x00" in text:
        raise RowFault(f"{field} has a NUL character{details}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowFault(f"{field} has an unpaired surrogate{details}") from None
    return text


def text_of(record: Mapping[str, Any], field: str, details: str = "") -> str:
    """Returns the text of a field that must be there."""
    return clean_text(value_of(record, field, details), field, details)


def value_of(record: Mapping[str, Any], field: str, details: str = "") -> Any:
    """Returns the value of a field that must be there."""
    value = find(record, field)
    if value is ABSENT:
        raise RowFault(f"no field {field!r}{details or f' ({named_fields(record)})'}")
    return value


def optional_text(record: Mapping[str, Any], *fields: str) -> str:
    """Returns the texts of those fields that are not blank, joined by blank lines; a list of texts counts as its texts."""
    texts = []
    for field in fields:
        value = find(record, field)
        for item in value if isinstance(value, list) else [value]:
            if not is_blank(item):
                texts.append(clean_text(item, field))
    return "\n\n".join(texts)


def named_fields(record: Mapping[str, Any]) -> str:
    """Lists a record's fields for a reason: the first few, escaped to ASCII if they are not printable."""
    names = [name if name.isprintable() else ascii(name) for name in sorted(map(str, record))]
    return f"fields: {shortened(names)}"


def shortened(names: Sequence[str]) -> str:
    """Joins the first few names."""
    return ", ".join([*(name[:40] for name in names[:8]), *(["..."] if len(names) > 8 else [])]) or "none"
