"""Reads and atomically writes files in a folder of any storage that pyarrow supports (local, `s3://`, `gs://`).

While the storage is unavailable, reads and writes are retried for `retry_seconds` and then raise StorageError; a full disk raises
it at once.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from profuser.errors import ArtifactError, StorageError, UserError
from profuser.storage.retry import RETRY_SECONDS, reason, with_retry

T = TypeVar("T")

ABANDONED_SECONDS = 600.0
"""Time since its last modification after which a temporary file counts as left behind by a dead process."""


@dataclass(frozen=True)
class Folder:
    """A folder by its URI or local path. Cheap to create and to send to another process; opens the file system when used."""

    uri: str
    retry_seconds: float = RETRY_SECONDS
    """Time that a read or write is retried while the storage is unavailable."""

    @classmethod
    def at(cls, location: str | Path) -> "Folder":
        """Returns the folder at a path or URI; local paths are made absolute, so that other processes find them."""
        text = str(location)
        return cls(text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> "Folder":
        return replace(self, uri=f"{self.uri}/{name}")

    def without_retry(self) -> "Folder":
        """Returns the same folder with `retry_seconds` 0."""
        return replace(self, retry_seconds=0.0)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine."""
        return "://" not in self.uri or self.uri.startswith("file://")

    def _open(self) -> tuple[pafs.FileSystem, str]:
        try:
            return pafs.FileSystem.from_uri(self.uri)
        except pa.ArrowInvalid as error:
            raise UserError(f"storage {self.uri}: {error}") from None

    def _with_retry(self, name: str, action: Callable[[pafs.FileSystem, str], T]) -> T:
        """Runs an action on the file system and this folder's path in it, with retries; returns its result."""
        # Opening is retried too: it may request the region of a bucket from an object store.
        return with_retry(self.path(name), lambda: action(*self._open()), self.retry_seconds)

    def path(self, name: str = "") -> str:
        """Returns the path or URI of a file inside, as a user would type it."""
        return f"{self.uri}/{name}" if name else self.uri

    def exists(self, name: str = "") -> bool:
        """Returns whether a file or folder of this name exists."""
        return self._info(name).type != pafs.FileType.NotFound

    def modified(self, name: str) -> float | None:
        """Returns a file's modification time, in seconds by the storage's clock; None if it does not exist."""
        nanoseconds = self._info(name).mtime_ns
        return None if nanoseconds is None else nanoseconds / 1e9

    def _info(self, name: str) -> pafs.FileInfo:
        return self._with_retry(name, lambda fs, root: fs.get_file_info(f"{root}/{name}" if name else root))

    def names(self) -> list[str]:
        """Returns the sorted names of the files and folders directly inside; empty if the folder does not exist."""
        return sorted(info.base_name for info in self._entries())

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of the files directly inside, by name; empty if the folder does not exist."""
        return {entry.base_name: entry.size for entry in self._entries() if entry.type == pafs.FileType.File}

    def files(self) -> dict[str, pafs.FileInfo]:
        """Returns all files of the folder and its subfolders, by relative path; if this is itself a file, under the name `""`."""

        def find(fs: pafs.FileSystem, root: str) -> dict[str, pafs.FileInfo]:
            own = fs.get_file_info(root)
            if own.type == pafs.FileType.File:
                return {"": own}
            found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
            return {info.path[len(root) + 1 :]: info for info in found if info.type == pafs.FileType.File}

        return self._with_retry("", find)

    def _entries(self) -> list[pafs.FileInfo]:
        return self._with_retry("", lambda fs, root: fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)))

    def clock(self) -> float:
        """Returns the storage's time in seconds, from a file that is written and deleted: the one clock that all machines share."""
        probe, is_begun = _temporary("probe"), False

        def attempt(fs: pafs.FileSystem, root: str) -> float:
            nonlocal is_begun
            fs.create_dir(root, recursive=True)
            is_begun = True
            with fs.open_output_stream(f"{root}/{probe}", compression=None) as stream:
                stream.write(b"0")
            nanoseconds = fs.get_file_info(f"{root}/{probe}").mtime_ns
            fs.delete_file(f"{root}/{probe}")
            return nanoseconds / 1e9

        try:
            return self._with_retry("", attempt)
        except BaseException:
            if is_begun:
                self._discard(probe)
            raise

    def check_writable(self) -> None:
        """Raises UserError if nothing can be written here, without retries: to be called at set-up."""
        otherwise = "or choose another: --set storage=FOLDER"
        try:
            # Checked first: if the store does not answer, this fails in half the time of `clock`, which creates a folder.
            self.without_retry().exists()
            self.without_retry().clock()
        except StorageError as error:
            raise UserError(f"storage {error}, {otherwise}") from None
        except OSError as error:
            raise UserError(f"storage {self.uri}: {reason(error)}; make it a folder, {otherwise}") from None

    def sweep(self) -> None:
        """Deletes the unfinished files of dead processes: temporary files that are old by the storage's clock."""
        left = [name for name in self.names() if name.startswith(".") and name.endswith(".tmp")]
        if left:
            now = self.clock()
            for name in left:
                if now - (self.modified(name) or now) > ABANDONED_SECONDS:
                    self.remove(name)

    def _write(self, name: str, write: Callable[[pafs.FileSystem, str], None]) -> None:
        """Writes a file atomically: `write` gets a temporary path, which is renamed when it succeeds."""
        temporary, is_begun = _temporary(name), False

        def attempt(fs: pafs.FileSystem, root: str) -> None:
            nonlocal is_begun
            fs.create_dir(root, recursive=True)
            is_begun = True
            write(fs, f"{root}/{temporary}")
            fs.move(f"{root}/{temporary}", f"{root}/{name}")

        try:
            self._with_retry(name, attempt)
        except BaseException:
            if is_begun:
                self._discard(temporary)
            raise

    def _discard(self, temporary: str) -> None:
        # If that fails too, for example on a read-only storage, a later sweep deletes it.
        with suppress(OSError, StorageError):
            self.without_retry().remove(temporary)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file atomically."""

        def write(fs: pafs.FileSystem, path: str) -> None:
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)

        self._write(name, write)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file if none exists; of several processes that try concurrently, one gets True. Local folders only."""

        def attempt(_: pafs.FileSystem, root: str) -> bool:
            file = Path(root, name)
            try:
                stream = file.open("xb")
            except FileExistsError:
                return False
            try:
                with stream:
                    stream.write(data)
            except OSError:
                file.unlink()
                raise
            return True

        return self._with_retry(name, attempt)

    def read_bytes(self, name: str) -> bytes:
        """Reads a file; raises FileNotFoundError if it does not exist."""

        def read(fs: pafs.FileSystem, root: str) -> bytes:
            with fs.open_input_file(f"{root}/{name}") as stream:
                return stream.read()

        return self._with_retry(name, read)

    def read_ends(self, name: str, num_bytes: int) -> bytes:
        """Returns the first and the last `num_bytes` of a file; the rest is not fetched."""

        def read(fs: pafs.FileSystem, root: str) -> bytes:
            with fs.open_input_file(f"{root}/{name}") as stream:
                head = stream.read(num_bytes)
                stream.seek(max(0, stream.size() - num_bytes))
                return head + stream.read(num_bytes)

        return self._with_retry(name, read)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        self.write_bytes(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON file."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise ArtifactError(f"{self.path(name)}: not JSON: {error}") from None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file (zstd) atomically."""
        number_lists = [
            f for f in table.schema if pa.types.is_list(f.type) and pa.types.is_primitive(f.type.value_type)
        ]
        # Ids and log-probabilities rarely repeat, but their high bytes do: stored separately, a column is a fifth smaller.
        encoding = {f"{field.name}.list.element": "BYTE_STREAM_SPLIT" for field in number_lists}

        def write(fs: pafs.FileSystem, path: str) -> None:
            pq.write_table(
                table, path, filesystem=fs, compression="zstd", use_dictionary=False, column_encoding=encoding
            )

        self._write(name, write)

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a Parquet file, or some of its columns; raises ArtifactError if it is truncated or not Parquet."""
        return self._parquet(name, lambda file: file.read(columns))

    def table_metadata(self, name: str) -> dict[bytes, bytes]:
        """Returns the key-value metadata of a Parquet file; raises ArtifactError if it is truncated or not Parquet."""
        return self._parquet(name, lambda file: file.schema_arrow.metadata or {})

    def _parquet(self, name: str, read: Callable[[pq.ParquetFile], T]) -> T:
        try:
            fs, root = self._open()
            return read(pq.ParquetFile(f"{root}/{name}", filesystem=fs))
        except (pa.ArrowInvalid, OSError):
            # The file is damaged or the storage is unavailable. Reading it into memory, with retries, rules out the latter.
            try:
                return read(pq.ParquetFile(pa.BufferReader(self.read_bytes(name))))
            except (pa.ArrowInvalid, OSError) as error:
                text = " ".join(str(error).split())
                raise ArtifactError(f"{self.path(name)}: not a whole Parquet file: {text}") from None

    def rename(self, old: str, new: str) -> None:
        """Renames a file inside."""
        self._with_retry(old, lambda fs, root: fs.move(f"{root}/{old}", f"{root}/{new}"))

    def remove(self, name: str) -> None:
        """Deletes a file inside, if it exists."""
        with suppress(FileNotFoundError):
            self._with_retry(name, lambda fs, root: fs.delete_file(f"{root}/{name}"))

    def delete(self) -> None:
        """Deletes the folder and its content."""
        if self.exists():
            self._with_retry("", lambda fs, root: fs.delete_dir(root))

    def download(self, name: str, to: Path) -> None:
        """Copies a file inside, or this file itself if the name is empty, to a local path."""
        disk = pafs.LocalFileSystem()

        def copy(fs: pafs.FileSystem, root: str) -> None:
            source = f"{root}/{name}" if name else root
            pafs.copy_files(source, str(to), source_filesystem=fs, destination_filesystem=disk)

        self._with_retry(name, copy)

    def upload(self, folder: Path) -> None:
        """Copies a local folder's files into this folder."""
        disk = pafs.LocalFileSystem()

        def copy(fs: pafs.FileSystem, root: str) -> None:
            fs.create_dir(root, recursive=True)
            pafs.copy_files(str(folder), root, source_filesystem=disk, destination_filesystem=fs)

        self._with_retry("", copy)


def _temporary(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"
