"""Reads the category of a record, and checks that the fields that a recipe names exist."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from profuser.corpus.rows import RawRow
from profuser.corpus.values import ABSENT, clean_text, find, named_fields
from profuser.errors import UserError


def category_of(record: Mapping[str, Any], path: str) -> str | None:
    """Returns a record's category as text; None for null, blank and NaN (a table's missing value).

    Raises:
        RowFault: the category is a list or an object, or text that cannot be stored.
    """
    value = find(record, path)
    if value is ABSENT or value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int, float)):
        return str(value)
    return None if isinstance(value, str) and not value.strip() else clean_text(value, path)


class OptionalFields:
    """Checks that at least one record has each field that a recipe names; a misspelt name would go unnoticed otherwise.

    Args:
        paths: names or dotted paths of fields, by the setting that names them.
    """

    def __init__(self, paths: Mapping[str, str]):
        self._missing = dict(paths)
        self._first: Mapping[str, Any] | None = None

    def watch(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        """Yields the records unchanged, and notes which fields they have."""
        for row in rows:
            if self._missing and row.record is not None:
                self._first = self._first or row.record
                for setting in [s for s, path in self._missing.items() if find(row.record, path) is not ABSENT]:
                    del self._missing[setting]
            yield row

    def check(self, location: str) -> None:
        """Raises UserError if a field is in no watched record."""
        for setting, path in self._missing.items():
            raise UserError(
                f"{setting}: no record of {location} has a field {path!r} (the first has "
                f"{named_fields(self._first or {})}); fix the name, or set it to null"
            )
