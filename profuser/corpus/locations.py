"""Resolves a corpus location: a file, a folder, a glob, a file or folder in an object store, or a dataset on the Hub."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from profuser.corpus.compressed import SUFFIXES as PACKED
from profuser.errors import StorageError, UserError
from profuser.storage.cache import local_copy
from profuser.storage.folder import Folder

HUB = "hub:"
TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*(text + packed for text in TEXTS for packed in PACKED), ".parquet")
KNOWN_ENDINGS = "known endings: .json, .jsonl, .ndjson, .csv, .tsv (each also with .gz, .bz2, .zst), .parquet"
GLOB_SIGNS = "*?["
HUB_LOCATION = re.compile(r"hub:\w[\w.-]*(/\w[\w.-]*(/[^/:]+)?)?(:.+)?")


def corpus_files(location: str) -> list[Path]:
    """Returns the files at a location.

    Args:
        location: a file of any name; a folder or a glob, whose files with a known ending are used (hidden ones are not);
            the URI of a file or folder (`s3://`, `gs://`), which is copied to this machine; or a Hub dataset,
            `hub:owner/name[:split]` or an `owner/name` that is not a path.

    Returns:
        The files, sorted by path; none for a Hub dataset.

    Raises:
        UserError: no such file, folder or match exists, no file has a known ending, or a file cannot be opened.
    """
    if not location.strip():
        raise UserError("corpus.path is empty; give a file, a folder, a glob, or hub:owner/name")
    if location.startswith(HUB):
        if not HUB_LOCATION.fullmatch(location):
            raise UserError(
                f"{location}: not a Hub dataset name; expected hub:owner/name, hub:owner/name:split or "
                "hub:owner/name/config:split"
            )
        return []
    try:
        files = _fetched_files(location) if "://" in location else _local_files(location)
    except OSError as error:
        inside = "" if error.filename in (None, location) else f" ({error.filename})"
        raise UserError(f"{location}: cannot be read: {error.strerror or error}{inside}") from None
    for file in files:
        if not os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"{file}: cannot be read: Permission denied")
    return files


def is_hub_name(location: str) -> bool:
    """Returns whether a location that is not a path has the form `owner/name`, with or without a leading `hub:`."""
    owner, slash, name = location.removeprefix(HUB).partition("/")
    return bool(slash and owner and name and "/" not in name and not set(".:~ ") & set(owner) and not _known(name))


def _local_files(location: str) -> list[Path]:
    # Unlike Path.expanduser, this keeps an unknown ~name, which may be a file name.
    path = Path(os.path.expanduser(location))
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(filter(_usable, _walk(path)))
        if not files:
            raise UserError(f"{location}: no corpus file in this folder; {KNOWN_ENDINGS}")
        return files
    if path.exists():
        raise UserError(
            f"{location}: neither a file nor a folder (a pipe or a device?); save its content to a file first"
        )
    _check_link(path)
    if any(sign in location for sign in GLOB_SIGNS):
        matches = _matches(path)
        if not matches:
            raise UserError(f"{location}: matches no file")
        files = sorted(filter(_usable, matches))
        if not files:
            raise UserError(f"{location}: matches no corpus file; {KNOWN_ENDINGS}")
        return files
    if is_hub_name(location):
        return []
    raise UserError(f"{location}: no such file or folder")


def _fetched_files(location: str) -> list[Path]:
    """Copies the corpus files at a URI to this machine, and returns them."""
    try:
        # Runs at set-up: an unavailable storage should fail at once.
        source = Folder.at(location).without_retry()
        place = local_copy(source, lambda name: not name or (_known(name) and not _hidden(Path(name))))
    except FileNotFoundError:
        if source.exists():
            raise UserError(f"{location}: no corpus file in this folder; {KNOWN_ENDINGS}") from None
        pattern = "; globs work on local paths only: give the folder" if "*" in location else ""
        raise UserError(f"{location}: no such file or folder{pattern}") from None
    except StorageError as error:
        raise UserError(str(error)) from None
    except UserError as error:
        raise UserError(
            f"{location}: a corpus is read from a local path, from an object store (s3://, gs://) or from "
            f"hub:owner/name; copy it here ({error})"
        ) from None
    return [place] if place.is_file() else sorted(filter(_usable, _walk(place)))


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders, without hidden ones; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error  # The rows of a folder that cannot be opened would be missing silently.

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _matches(pattern: Path) -> list[Path]:
    """Returns the files and folders that a glob matches; wildcards do not match hidden ones.

    Unlike in `glob.glob`, `**` follows no links: a link to a parent folder would yield each file dozens of times.
    """
    first = next(place for place, part in enumerate(pattern.parts) if any(sign in part for sign in GLOB_SIGNS))
    base = Path(*pattern.parts[:first])
    wild = [part if part == "**" else re.sub(r"\*+", "*", part) for part in pattern.parts[first:]]
    if wild[-1] == "**":
        wild.append("*")
    asks_hidden = any(part.startswith(".") for part in wild)
    found = base.glob("/".join(wild))
    return [path for path in found if asks_hidden or not _hidden(path.relative_to(base))]


def _usable(file: Path) -> bool:
    if not _known(file.name):
        return False
    _check_link(file)
    return file.is_file()


def _check_link(file: Path) -> None:
    """Raises UserError for a link to nothing or to itself, which means missing data."""
    if file.is_symlink():
        try:
            file.stat()
        except OSError as error:
            raise UserError(f"{file}: a broken symbolic link: {error.strerror}") from None


def _known(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)
