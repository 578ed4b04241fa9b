"""The cache of this machine: local copies of an object store's files, for engines, tokenizers and corpus readers."""

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
"""Root folder of the copies: `s3://bucket/x` is copied to `s3/bucket/x`. It may be deleted while nothing runs."""
NUM_THREADS = 8


def local_copy(source: Folder, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Returns a local path of a folder or file: the source itself if it is local, else a copy.

    A file copied before is fetched again only if its size or time has changed; a file deleted at the source is deleted here too.
    Processes on one machine that request the same copy concurrently wait for the first one.

    Args:
        source: the folder or file to copy.
        wanted: returns whether a file is needed, by its path inside the source; the path is empty if the source is a file.

    Raises:
        FileNotFoundError: there is no such folder or file, or no wanted file in it.
        StorageError: the storage is unavailable or refuses access for longer than the source's `retry_seconds`.
    """
    if source.is_local:
        return Path(source.uri.removeprefix("file://"))
    place = CACHE / source.uri.replace("://", "/", 1)
    with exclusive(source.uri):
        found = source.files()
        chosen = {name: info for name, info in found.items() if wanted(name) and not _is_unfinished(name)}
        if not chosen:
            raise FileNotFoundError(f"nothing to read at {source.uri}")
        stale = {name: info for name, info in chosen.items() if not _is_same(place / name, info)}
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(partial(_fetch, source, place), stale, stale.values()))
        for file in [file for file in place.rglob("*") if file.is_file()]:
            if file.relative_to(place).as_posix() not in found:
                file.unlink()
    return place


def origin(path: Path) -> str:
    """Returns the URI that a local path is a copy of; any other path unchanged."""
    if not path.is_relative_to(CACHE):
        return str(path)
    scheme, _, rest = path.relative_to(CACHE).as_posix().partition("/")
    return f"{scheme}://{rest}"


def _fetch(source: Folder, place: Path, name: str, info: pafs.FileInfo) -> None:
    """Copies one file atomically, with the source's modification time."""
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
    """Returns whether a file is temporary, by its name: it is still being written at the source."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Holds a lock against other processes of this machine that make the same entry of the cache."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / hashlib.sha256(name.encode()).hexdigest()[:16]).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
