"""Reads the six benchmarks' data from local files: finds the files of each split, checks rows, and computes digests.

A folder has one file per split, `test.jsonl` or, as on the Hub, `test-00000-of-00001.parquet`: in the folder itself, in `data/`, or
in a folder named after the Hub's configuration (`ARC-Challenge/`). MMLU's rows have a `subject`, or its subjects have a folder each
(`anatomy/test.jsonl`), or a file each in a folder per split (`test/anatomy.jsonl`).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from profuser.errors import UserError
from profuser.recipe.benchmarks import PRESETS

SUFFIXES = (".jsonl", ".parquet")
WHOLE = "all"
"""MMLU's Hub configuration with all subjects."""
Rows = dict[str, list[dict[str, Any]]]
"""Rows by split."""


@dataclass(frozen=True)
class Pack:
    """A benchmark's local data: tables by task (one per MMLU subject, else the benchmark itself) and split."""

    tables: dict[str, dict[str, pa.Table]]

    def num_items(self, split: str, limit: int | None) -> int:
        """Returns the number of evaluated items."""
        sizes = (splits[split].num_rows for splits in self.tables.values())
        return sum(size if limit is None else min(size, limit) for size in sizes)


def read_pack(name: str, path: str, shots: int) -> Pack:
    """Reads a benchmark's local data, and checks for faults that the harness would fail on or misread.

    Args:
        name: name of the benchmark.
        path: folder, or a JSONL or Parquet file of the evaluated split.
        shots: worked examples in a prompt.

    Raises:
        UserError: there are no such data, or a row is not a valid row of the benchmark; one line with file and row.
    """
    dataset, setting = PRESETS[name], _setting(name)
    found = {
        split: _checked(name, _tagged(name, files), setting if split == dataset.evaluated else f"{setting}: {split}")
        for split, files in pack_files(name, path, shots).items()
    }
    tables = {
        task: {split: _table(rows, f"{setting}: {path}, split {split}") for split, rows in by_split.items()}
        for task, by_split in _by_task(name, found, setting).items()
    }
    for task, by_split in tables.items():
        examples = by_split[dataset.examples].num_rows if dataset.examples and shots else 0
        if dataset.examples and examples < shots:
            raise UserError(
                f"{setting}: {task} has {examples} rows in the split {dataset.examples!r}, but {shots} are needed"
            )
    return Pack(tables)


def read_folder(name: str, path: str) -> Pack:
    """Reads the local data of a task or group of the harness that is none of the six; its rows are not checked.

    Args:
        name: name of the task or group.
        path: folder with a file per split; for a group, with one such folder per task.

    Raises:
        UserError: there are no such files, or one cannot be read.
    """
    root, setting = Path(path).expanduser(), _setting(name)
    folders = {name: root} if _files(root) else {f.name: f for f in sorted(root.glob("*")) if _files(f)}
    if not folders:
        raise UserError(f"{setting}: no file of a split in {str(root)!r}; expected test.jsonl, or a folder per task")
    tables: dict[str, dict[str, pa.Table]] = {}
    for task, folder in folders.items():
        splits: dict[str, list[dict[str, Any]]] = {}
        for file in _files(folder):
            splits.setdefault(file.name.split(".")[0].split("-")[0], []).extend(row for _, row in _rows(file))
        tables[task] = {split: _table(rows, f"{setting}: {folder}, split {split}") for split, rows in splits.items()}
    return Pack(tables)


def folder_digest(path: str) -> str:
    """Returns sixteen hex digits that identify the data of `read_folder`."""
    root, sha = Path(path).expanduser(), hashlib.sha256()
    for file in sorted([*_files(root), *(file for folder in sorted(root.glob("*")) for file in _files(folder))]):
        sha.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def pack_digest(name: str, path: str, shots: int) -> str:
    """Returns sixteen hex digits that identify local data: the SHA-256 over the files of the splits that are used."""
    sha = hashlib.sha256()
    for split, files in pack_files(name, path, shots).items():
        for file in files:
            # With several files, their names also identify the contents.
            place = f"{file.parent.name}/{file.name}" if len(files) > 1 else ""
            sha.update(f"{split} {place}\n".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def pack_files(name: str, path: str, shots: int) -> dict[str, list[Path]]:
    """Returns the files of the splits that a benchmark uses; raises UserError if one does not exist."""
    dataset, root, setting = PRESETS[name], Path(path).expanduser(), _setting(name)
    examples = dataset.examples if shots else None
    if root.is_file() and examples is None:
        return {dataset.evaluated: [root]}
    if root.is_file():
        raise UserError(
            f"{setting}: {root} is one file, but {shots} worked examples are needed from the split {examples!r}: give a folder "
            f"with {dataset.evaluated}.jsonl and {examples}.jsonl, or set num_fewshot: 0"
        )
    if not root.is_dir():
        raise UserError(f"{setting}: no folder or file {str(root)!r}")
    found = {}
    for split in (dataset.evaluated, examples):
        if split is not None:
            found[split] = _split_files(root, split, dataset.configuration)
            if not found[split]:
                hint = (
                    f", or set num_fewshot: 0 (the {shots} worked examples come from it)" if split == examples else ""
                )
                raise UserError(f"{setting}: {root} has no file of the split {split!r}; expected {split}.jsonl{hint}")
    return found


def _setting(name: str) -> str:
    return f"evaluate.benchmarks.{name}.path"


def _split_files(root: Path, split: str, configuration: str | None) -> list[Path]:
    """Returns the files of a split, from the first place that has any."""
    for place in (root, root / "data", root / (configuration or WHOLE)):
        if files := _named(place, split):
            return files
    if configuration is not None:
        return []
    per_subject = [file for folder in sorted(root.iterdir()) for file in _named(folder, split)]
    return per_subject or _files(root / split)


def _named(folder: Path, split: str) -> list[Path]:
    return [f for f in _files(folder) if f.name.split(".")[0] == split or f.name.startswith(f"{split}-")]


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file()) if folder.is_dir() else []


def _tagged(name: str, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields rows with their location; MMLU rows without a subject get it from the name of their file or folder."""
    for file in files:
        for where, row in _rows(file):
            if name == "mmlu" and "subject" not in row:
                folder = file.parent.name
                row["subject"] = file.stem if folder in ("test", "dev") else folder
            yield where, row


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".parquet":
        try:
            records = pq.read_table(file).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a Parquet file: {' '.join(str(error).split())[:200]}") from None
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(records))
        return
    try:
        # Not splitlines: a string may contain a Unicode line separator.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: expected an object, got {line[:60]!r}")
            yield f"{file}:{number}", row


def _checked(name: str, rows: Iterator[tuple[str, dict[str, Any]]], setting: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for where, row in rows:
        missing = [column for column in PRESETS[name].columns if row.get(column) is None]
        expected = f"no {missing[0]!r}; rows of {name} have {', '.join(PRESETS[name].columns)}" if missing else None
        if reason := expected or PRESETS[name].fault(row):
            raise UserError(f"{setting}: {where}: {reason}")
        out.append(row)
    if not out:
        raise UserError(f"{setting}: no rows")
    return out


def _by_task(name: str, found: Rows, setting: str) -> dict[str, Rows]:
    if name != "mmlu":
        return {name: found}
    known = mmlu_subjects()
    out: dict[str, Rows] = {}
    for split, rows in found.items():
        for row in rows:
            subject = row["subject"]
            if subject not in known:
                raise UserError(
                    f"{setting}: {subject!r} is not an MMLU subject; subjects are named as on the Hub, e.g. anatomy"
                )
            out.setdefault(f"mmlu_{subject}", {other: [] for other in found})[split].append(row)
    evaluated = PRESETS[name].evaluated
    return {task: by_split for task, by_split in sorted(out.items()) if by_split[evaluated]}


def mmlu_subjects() -> set[str]:
    """Returns the subjects, from the harness's own files."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    folder = Path((spec.submodule_search_locations or [""])[0] if spec else "") / "tasks" / "mmlu" / "default"
    return {file.stem.removeprefix("mmlu_") for file in folder.glob("mmlu_*.yaml")}


def _table(rows: list[dict[str, Any]], where: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{where}: a column has mixed types: {' '.join(str(error).split())[:200]}") from None
