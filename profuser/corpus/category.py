"""Reads the category of a record from the field that the recipe names."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from profuser.corpus.formats import clean_text, named_fields
from profuser.corpus.rows import RawRow
from profuser.errors import UserError


def category_of(record: Mapping[str, Any], name: str) -> str | None:
    """Returns a record's category as text; None for null, blank and NaN (a table's missing value).

    Raises:
        RowFault: the category is a list or an object, or text that cannot be stored.
    """
    value = record.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int, float)):
        return str(value)
    return None if isinstance(value, str) and not value.strip() else clean_text(value, name)


class CategoryField:
    """Checks that at least one record has the field `corpus.category_field`; a misspelt name would go unnoticed otherwise."""

    def __init__(self, name: str | None):
        self.name = name
        self._first: Mapping[str, Any] | None = None
        self._is_found = name is None

    def watch(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        """Yields the records unchanged, and notes whether one has the field."""
        for row in rows:
            if not self._is_found and row.record is not None:
                self._first = self._first or row.record
                self._is_found = self.name in row.record
            yield row

    def check(self, location: str) -> None:
        """Raises UserError if no watched record has the field."""
        if not self._is_found:
            raise UserError(
                f"corpus.category_field: no record of {location} has a field {self.name!r} (the first has "
                f"{named_fields(self._first or {})}); fix the name, or set it to null"
            )
