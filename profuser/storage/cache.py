"""What lies in an object store, on this machine's disk too: for engines, tokenizers and corpus readers, which read nothing else."""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs

from profuser.storage.folder import Folder

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "profuser"
"""Holds the copies, `s3://bucket/x` as `s3/bucket/x`. It may be deleted at any time when nothing runs."""
NUM_THREADS = 8


def local_copy(source: Folder, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A folder or file as a local path: itself where it is local, else a copy.

    What was copied before, and has the same size and time still, is not fetched again; what is gone at the source is deleted.
    Processes of one machine that want the same copy at the same time wait for the first one.

    Args:
        source: what is copied.
        wanted: says by a file's path inside whether it is needed; a file that is itself the source has an empty one.

    Raises:
        FileNotFoundError: there is no such folder or file, or nothing wanted in it.
        StorageError: the storage is away or refuses, for longer than the source's patience.
    """
    if source.is_local:
        return Path(source.uri.removeprefix("file://"))
    place = CACHE / source.uri.replace("://", "/", 1)
    with _alone(source.uri):
        there = source.files()
        chosen = {name: info for name, info in there.items() if wanted(name) and not _is_unfinished(name)}
        if not chosen:
            raise FileNotFoundError(f"nothing to read at {source.uri}")
        old = {name: info for name, info in chosen.items() if not _is_same(place / name, info)}
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(partial(_fetch, source, place), old, old.values()))
        for file in [file for file in place.rglob("*") if file.is_file()]:
            if file.relative_to(place).as_posix() not in there:
                file.unlink()
    return place


def origin(path: Path) -> str:
    """The URI of what a local path is a copy of; any other path as it is."""
    if not path.is_relative_to(CACHE):
        return str(path)
    scheme, _, rest = path.relative_to(CACHE).as_posix().partition("/")
    return f"{scheme}://{rest}"


def _fetch(source: Folder, place: Path, name: str, info: pafs.FileInfo) -> None:
    """Copies one file; it is visible only when whole, and then has the source's time."""
    target = place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        source.download(name, temporary)
        os.utime(temporary, ns=(info.mtime_ns, info.mtime_ns))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_same(file: Path, info: pafs.FileInfo) -> bool:
    try:
        found = file.stat()
    except OSError:
        return False
    return found.st_size == info.size and found.st_mtime_ns == info.mtime_ns


def _is_unfinished(name: str) -> bool:
    """Whether it is what a process at the source has not written to the end."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Within, no other process of this machine copies from this URI."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / hashlib.sha256(uri.encode()).hexdigest()[:16]).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
