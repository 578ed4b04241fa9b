"""Records from corpus files and Hub datasets, one by one: JSON list, JSONL (also .gz), Parquet.

What breaks one record is a fault of its row, and the rest is read on; what breaks a file is a UserError that names it.
"""

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from profuser.corpus.locations import HUB, corpus_files
from profuser.errors import UserError

EXCERPT_CHARS = 160
BATCH_ROWS = 1024
BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BLANK = re.compile(r"[ \t\r\n]*")
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


def read_corpus(location: str) -> Iterator[RawRow]:
    """All records of a corpus, in order, streamed; only a JSON list is held in memory (as text) while it is read.

    A gzip or JSONL file that is cut gives the rows before the cut, and a faulty one there.

    Args:
        location: see `corpus_files`; on the Hub also `hub:owner/name/config:split`. The split is `train` by default.

    Raises:
        UserError: a file cannot be read at all, or the Hub does not give the dataset.
    """
    files = corpus_files(location)
    if not files:
        yield from _read_hub(location.removeprefix(HUB))
    for file in files:
        yield from _read_file(file)


def excerpt_of(record: Mapping[str, Any] | None) -> str:
    """The beginning of a record as JSON, in ASCII."""
    return json.dumps(record, default=str)[:EXCERPT_CHARS] if record else ""


def _read_file(file: Path) -> Iterator[RawRow]:
    """Reads a file by its content rather than its name: a gzip without .gz is one all the same."""
    label = os.fsencode(file).decode("utf-8", "replace")
    try:
        with file.open("rb") as raw:
            magic = raw.peek(4)[:4]
            if magic == b"PAR1" or file.suffix.lower() == ".parquet":
                yield from _read_parquet(file, label)
                return
            is_gzip = magic[:2] == b"\x1f\x8b" or file.suffix.lower() == ".gz"
            yield from _read_text(gzip.GzipFile(fileobj=raw) if is_gzip else raw, label)
    except EOFError:
        raise UserError(f"{label}: cut short; fetch the file again") from None
    except (OSError, zlib.error) as error:
        raise UserError(f"{label}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read_text(stream: io.BufferedReader | gzip.GzipFile, label: str) -> Iterator[RawRow]:
    """A JSON list or JSONL, told apart by the first character."""
    try:
        head = stream.peek(1)
    except EOFError:
        head = b""  # Nothing before the cut: the lines' reader says so.
    if head.startswith(UTF16_BOMS):
        raise UserError(f"{label}: looks like UTF-16; save it as UTF-8")
    first = head.removeprefix(BOM).lstrip()[:1]
    if first not in (b"", b"{", b"["):
        raise UserError(f"{label}: begins with {first!r}, so it is no JSON list, JSONL or Parquet file")
    yield from _read_list(stream.read(), label) if first == b"[" else _read_lines(stream, label)


def _read_list(data: bytes, label: str) -> Iterator[RawRow]:
    """A JSON list, record by record. Bytes that are not UTF-8 spoil only the record that they are in."""
    text = data.removeprefix(BOM).decode("utf-8", "surrogateescape")
    decode = json.JSONDecoder().raw_decode
    place, number = _skip(text, text.index("[") + 1), 0
    closed = text.startswith("]", place)
    while not closed:
        number += 1
        try:
            record, end = decode(text, place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{label}: record {number} of the JSON list is broken or cut: {error}") from None
        yield _row(label, number, record, text[place:end], "record")
        place = _skip(text, end)
        closed = text.startswith("]", place)
        if not closed and not text.startswith(",", place):
            found = repr(text[place]) if place < len(text) else "the end of the file"
            raise UserError(f"{label}: the JSON list is broken or cut: {found} after record {number}")
        place = place if closed else _skip(text, place + 1)
    if _skip(text, place + 1) != len(text):
        raise UserError(f"{label}: there is more text after the JSON list, which ends with record {number}")


def _skip(text: str, place: int) -> int:
    match = BLANK.match(text, place)
    return match.end() if match else place


def _read_lines(stream: io.BufferedIOBase, label: str) -> Iterator[RawRow]:
    """JSONL; what breaks one line leaves the others be. Blank lines are passed over."""
    number, is_first = 0, True
    while True:
        number += 1
        try:
            line = stream.readline()
        except EOFError:
            yield RawRow(label, number, None, "the file is cut here")
            return
        if not line:
            return
        if number == 1:
            line = line.removeprefix(BOM)
        text = line.strip()
        if text == b"{" and is_first:
            raise UserError(
                f"{label}: line {number} opens an object that goes on over several lines; expected a JSON list of records, "
                "or one record a line"
            )
        if text:
            is_first = False
            yield _read_line(text, label, number, whole=line.endswith(b"\n"))


def _read_line(line: bytes, label: str, number: int, whole: bool) -> RawRow:
    excerpt = line[:EXCERPT_CHARS].decode("utf-8", "replace")
    try:
        text = line.decode("utf-8")
        return _row(label, number, json.loads(text), text)
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 (at byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        extra = error.msg == "Extra data"
        fault = "more than one JSON value on the line" if extra else f"not JSON ({error.msg} at column {error.colno})"
        if not whole and not extra:
            fault = f"not JSON, the file is cut here ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        fault = f"not readable as JSON ({error})"
    return RawRow(label, number, None, fault, excerpt)


def _read_parquet(file: Path, label: str) -> Iterator[RawRow]:
    """A Parquet file, a part of a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(index, 1), label, number)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{label}: not a readable Parquet file, stopped after record {number}: {reason}") from None


def _parquet_row(row: Any, label: str, number: int) -> RawRow:
    try:
        return _row(label, number, row.to_pylist()[0], unit="record")
    except UnicodeDecodeError:
        return RawRow(label, number, None, "not UTF-8", unit="record")
    except (ValueError, OverflowError) as error:
        return RawRow(label, number, None, f"a value cannot be read ({error})", unit="record")


def _read_hub(name: str) -> Iterator[RawRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository, _, split = name.partition(":")
    parts = repository.split("/")
    config = parts[2] if len(parts) == 3 else None
    try:
        dataset = load_dataset("/".join(parts[:2]), config, split=split or "train", streaming=True)
        for number, record in enumerate(dataset, 1):
            yield _row(f"{HUB}{name}", number, dict(record), unit="record")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = "no network, or HF_HUB_OFFLINE is set" if isinstance(error, ConnectionError) else "the Hub refuses it"
        raise UserError(
            f"{name}: no such file here, and not to be had as a Hub dataset: {what} ({reason}); give a path, or mend the name"
        ) from None


def _row(label: str, number: int, record: Any, text: str = "", unit: Unit = "line") -> RawRow:
    """A row of a parsed value; `text` is what it was parsed from."""
    excerpt = text[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()
    if not isinstance(record, dict):
        return RawRow(label, number, None, f"a record must be an object (this is {kind_of(record)})", excerpt, unit)
    if not _encodable(text):
        return RawRow(label, number, None, "not UTF-8", excerpt, unit)
    return RawRow(label, number, record, None, excerpt, unit)


def _encodable(text: str) -> bool:
    """False where bytes were no UTF-8 and stand in the text as escapes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """What a JSON value is, in plain words."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
