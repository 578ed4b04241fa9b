"""Where a corpus lies: a file, a folder, a glob, or a dataset on the Hub."""

import glob
import os.path
from pathlib import Path

from profuser.errors import UserError

HUB = "hub:"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")
GLOB_SIGNS = "*?["


def corpus_files(location: str) -> list[Path]:
    """The files that a location stands for.

    Args:
        location: a file of any name; a folder or a glob, of which the files with a known ending are taken (no hidden ones);
            or a Hub dataset, `hub:owner/name[:split]` or an `owner/name` that is no path.

    Returns:
        The files, sorted by path; none for a Hub dataset.

    Raises:
        UserError: there is no such file, folder or match, or none of its files has a known ending.
    """
    if not location.strip():
        raise UserError("corpus.path is empty; give a file, a folder, a glob, or hub:owner/name")
    if location.startswith(HUB):
        return []
    try:
        return _local_files(location)
    except OSError as error:
        raise UserError(f"{location}: cannot be read: {error.strerror or error}") from None


def is_hub_name(location: str) -> bool:
    """Whether a location that is no path reads as `owner/name`, with or without `hub:` before it."""
    owner, slash, name = location.removeprefix(HUB).partition("/")
    return bool(slash and owner and name and "/" not in name and not set(".:~ ") & set(owner) and not _known(name))


def _local_files(location: str) -> list[Path]:
    # Unlike Path.expanduser, this leaves an unknown ~name as it is: it may be a file's own name.
    path = Path(os.path.expanduser(location))
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _usable(file) and not _hidden(file.relative_to(path)))
        if not files:
            raise UserError(f"{location}: no corpus file in this folder; known endings: {', '.join(SUFFIXES)}")
        return files
    if any(sign in location for sign in GLOB_SIGNS):
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"{location}: matches no file")
        files = sorted(filter(_usable, matches))
        if not files:
            raise UserError(f"{location}: matches no corpus file; known endings: {', '.join(SUFFIXES)}")
        return files
    if is_hub_name(location):
        return []
    if "://" in location:
        raise UserError(
            f"{location}: a corpus is read from a path of this machine or from hub:owner/name; copy it here"
        )
    raise UserError(f"{location}: no such file or folder")


def _usable(file: Path) -> bool:
    return _known(file.name) and file.is_file()


def _known(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)
