"""Reads records from CSV and TSV: the first line names the fields, and every value is text."""

import csv
import io
from collections.abc import Iterator

from profuser.corpus.foreign import known_kind
from profuser.corpus.json_text import MAX_LINE_BYTES
from profuser.corpus.rows import EXCERPT_CHARS, TRUNCATED, RawRow, make_row
from profuser.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(stream: io.BufferedIOBase, head: bytes, label: str, delimiter: str) -> Iterator[RawRow]:
    """Reads a CSV or TSV file, record by record.

    Args:
        stream: the file, decompressed, from its beginning.
        head: its first bytes.
        label: the file's name.
        delimiter: what separates the values.

    Raises:
        UserError: the file is something else, or two columns have one name.
    """
    if foreign := known_kind(head):
        raise UserError(f"{label}: {foreign}")
    csv.field_size_limit(MAX_LINE_BYTES)
    # Bytes that are not UTF-8 make only their own record unusable.
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")  # type: ignore[arg-type]
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names = next(reader, [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{label}: two columns are named {twice[0]!r}; rename one")
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield RawRow(label, line, None, f"not {label[-3:].upper()} ({error})")
            continue
        except EOFError:
            yield RawRow(label, line, None, TRUNCATED)
            return
        if values is None:
            return
        if not values:
            continue  # An empty line.
        written = delimiter.join(values)
        if len(values) == len(names):
            yield make_row(label, line, dict(zip(names, values, strict=True)), written)
        else:
            excerpt = written[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()
            fault = f"another number of values than of columns ({len(values)} and {len(names)})"
            yield RawRow(label, line, None, fault, excerpt)
