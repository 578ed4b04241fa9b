"""Reads records from corpus files and Hub datasets, one by one: JSON list, JSONL, CSV, TSV (also compressed), Parquet.

A bad record becomes a row with a fault, and reading continues; an unreadable file raises a UserError that names it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from profuser.corpus.compressed import first_bytes, naming_damage, unpacked
from profuser.corpus.foreign import describe_foreign
from profuser.corpus.json_text import read_json_text
from profuser.corpus.locations import HUB, corpus_files
from profuser.corpus.rows import RawRow, make_row
from profuser.corpus.tables import DELIMITERS, read_table
from profuser.errors import UserError, one_line
from profuser.storage.cache import origin

BATCH_ROWS = 1024
BATCH_BYTES = 64 << 20
PARQUET = (b"PAR1", b"PARE")


def read_corpus(location: str) -> Iterator[RawRow]:
    """Streams all records of a corpus, in order; only a JSON list is held in memory (as text) while it is read.

    A truncated JSONL or CSV file, compressed or not, yields the rows before the cut, then one row with a fault.

    Args:
        location: see `corpus_files`; on the Hub also `hub:owner/name/config:split`. The split is `train` by default.

    Raises:
        UserError: a file cannot be read at all, or the Hub does not provide the dataset.
    """
    files = corpus_files(location)
    if not files:
        yield from _read_hub(location.removeprefix(HUB))
    for file in files:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[RawRow]:
    """Reads a file by its content: a gzip need not end in .gz, and a file that does may be plain text. CSV goes by its name."""
    label = os.fsencode(origin(file)).decode("utf-8", "replace")
    stem = file.name.lower().removesuffix(".gz").removesuffix(".bz2").removesuffix(".zst")
    delimiter = DELIMITERS.get(os.path.splitext(stem)[1])
    with naming_damage(label), file.open("rb") as raw:
        head = raw.peek(1)
        if head.startswith(PARQUET) or file.suffix.lower() == ".parquet":
            yield from _read_parquet(file, head, label)
            return
        stream = unpacked(raw)
        if delimiter is None:
            yield from read_json_text(stream, first_bytes(stream), label)
        else:
            yield from read_table(stream, first_bytes(stream), label, delimiter)


def _read_parquet(file: Path, head: bytes, label: str) -> Iterator[RawRow]:
    """Reads a Parquet file, a part of a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head and not head.startswith(PARQUET) and (foreign := describe_foreign(head)):
        raise UserError(f"{label}: not a readable Parquet file: it {foreign}")
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_batch_rows(parquet.metadata)):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(index, 1), label, number)
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error, 200)
        if "decrypt" in reason:
            raise UserError(f"{label}: an encrypted Parquet file; decrypt it first ({reason})") from None
        raise UserError(f"{label}: not a readable Parquet file, stopped after record {number}: {reason}") from None


def _batch_rows(metadata: Any) -> int:
    """Returns the rows to decode at once: fewer if they are large, so that memory does not grow with their size."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(largest, 1)))


def _parquet_row(row: Any, label: str, number: int) -> RawRow:
    try:
        return make_row(label, number, row.to_pylist()[0], unit="record")
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
            yield make_row(f"{HUB}{name}", number, dict(record), unit="record")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = one_line(error)
        what = "no network, or HF_HUB_OFFLINE is set" if isinstance(error, ConnectionError) else "the Hub refuses it"
        raise UserError(
            f"{name}: no such local file, and not loaded as a Hub dataset: {what} ({reason}); give a path, or fix the name"
        ) from None
