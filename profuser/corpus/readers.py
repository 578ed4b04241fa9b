"""Records from files, folders, globs and Hub datasets: JSON, JSONL (also .gz), Parquet."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profuser.errors import UserError

HUB = "hub:"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")
EXCERPT_CHARS = 160


@dataclass(frozen=True)
class RawRow:
    """One record as it was found, or why it is none."""

    file: str
    line: int
    """1-based: the line in JSONL, the record's number in a JSON list, Parquet or Hub dataset."""
    record: dict[str, Any] | None
    fault: str | None = None
    excerpt: str = ""


def corpus_files(location: str) -> list[Path]:
    """The files that a location stands for, sorted; none for a Hub dataset.

    Raises:
        UserError: there is no such file, folder or match, or it has no file of a known ending.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _known(file))
        if not files:
            raise UserError(f"folder {location}: no corpus file in it; known endings: {', '.join(SUFFIXES)}")
        return files
    if any(sign in location for sign in "*?["):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if _known(Path(name)))
        if not files:
            raise UserError(f"{location}: matches no file with a known ending ({', '.join(SUFFIXES)})")
        return files
    if location.startswith(HUB) or is_hub_name(location):
        return []
    raise UserError(f"{location}: no such file or folder")


def is_hub_name(location: str) -> bool:
    """Whether a location that is no path reads as `owner/name`."""
    owner, slash, name = location.removeprefix(HUB).partition("/")
    return bool(slash and owner and name and "/" not in name and "." not in owner and not _known(Path(name)))


def read_corpus(location: str) -> Iterator[RawRow]:
    """All records of a corpus, in order.

    Raises:
        UserError: a file cannot be read at all, or the Hub does not give the dataset.
    """
    files = corpus_files(location)
    if not files:
        yield from _read_hub(location.removeprefix(HUB))
    for file in files:
        yield from _read_file(file)


def _known(file: Path) -> bool:
    return file.name.lower().endswith(SUFFIXES)


def _read_file(file: Path) -> Iterator[RawRow]:
    if file.suffix.lower() == ".parquet":
        yield from _read_parquet(file)
        return
    try:
        with file.open("rb") as raw, _opened(raw, file) as stream:
            head = stream.read(1)
            while head.isspace() or head in (b"\xef", b"\xbb", b"\xbf"):
                head = stream.read(1)
            is_list = head == b"["
            stream.seek(0)
            yield from _read_list(stream.read(), file) if is_list else _read_lines(stream, file)
    except (OSError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _opened(raw: Any, file: Path) -> Any:
    return gzip.GzipFile(fileobj=raw) if file.suffix.lower() == ".gz" else raw


def _read_list(data: bytes, file: Path) -> Iterator[RawRow]:
    try:
        records = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a whole JSON list: {error}") from None
    for number, record in enumerate(records, 1):
        yield _row(str(file), number, record)


def _read_lines(stream: Any, file: Path) -> Iterator[RawRow]:
    """JSONL; what breaks one line leaves the others be. A gzip that ends too early ends with a faulty row."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline()
        except (EOFError, zlib.error) as error:
            yield RawRow(str(file), number, None, f"the file is cut or corrupt from here on: {error}")
            return
        if not line:
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        excerpt = line[:EXCERPT_CHARS].decode("utf-8", "replace").strip()
        try:
            record = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError:
            yield RawRow(str(file), number, None, "not UTF-8", excerpt)
        except (ValueError, RecursionError) as error:
            yield RawRow(str(file), number, None, f"not JSON: {error}", excerpt)
        else:
            yield _row(str(file), number, record)


def _read_parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield _row(str(file), number, record)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file: {' '.join(str(error).split())[:200]}") from None


def _read_hub(name: str) -> Iterator[RawRow]:
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    try:
        dataset = load_dataset(repository, split=split or "train", streaming=True)
        for number, record in enumerate(dataset, 1):
            yield _row(f"{HUB}{name}", number, dict(record))
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: no such file here, and the Hub does not give a dataset of that name: {reason}"
        ) from None


def _row(file: str, number: int, record: Any) -> RawRow:
    excerpt = json.dumps(record, ensure_ascii=True, default=str)[:EXCERPT_CHARS]
    if not isinstance(record, dict):
        return RawRow(file, number, None, f"a record must be an object, this is {type(record).__name__}", excerpt)
    return RawRow(file, number, record, None, excerpt)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
