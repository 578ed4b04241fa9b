"""A folder in any storage that pyarrow knows (local, `s3://`, `gs://`), with writes that are whole or invisible."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from profuser.errors import ArtifactError, UserError


@dataclass(frozen=True)
class Folder:
    """A folder by its URI or local path. Cheap to make and to send to another process; opens the file system when used."""

    uri: str

    @classmethod
    def at(cls, location: str | Path) -> "Folder":
        """A folder at a path or URI; local paths are made absolute, so that other processes find them."""
        text = str(location)
        return cls(text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return "://" not in self.uri or self.uri.startswith("file://")

    def _open(self) -> tuple[pafs.FileSystem, str]:
        try:
            return pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"storage {self.uri}: {error}") from None

    def path(self, name: str = "") -> str:
        """The path or URI of a file inside, as a user would type it."""
        return f"{self.uri}/{name}" if name else self.uri

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        fs, root = self._open()
        return fs.get_file_info(f"{root}/{name}" if name else root).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """Sorted names of the files and folders directly inside; empty where the folder is not there."""
        fs, root = self._open()
        found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        return sorted(info.base_name for info in found)

    @contextmanager
    def _whole(self, name: str) -> Iterator[tuple[pafs.FileSystem, str]]:
        """Gives a temporary path that takes the final name only when the body has ended well."""
        fs, root = self._open()
        temporary = f"{root}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        fs.create_dir(root, recursive=True)
        try:
            yield fs, temporary
            fs.move(temporary, f"{root}/{name}")
        except BaseException:
            if fs.get_file_info(temporary).type != pafs.FileType.NotFound:
                fs.delete_file(temporary)
            raise

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""
        with self._whole(name) as (fs, path), fs.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        """Reads a file."""
        fs, root = self._open()
        with fs.open_input_file(f"{root}/{name}") as stream:
            return stream.read()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file, whole or not at all."""
        self.write_bytes(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON file."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise ArtifactError(f"{self.path(name)}: not JSON: {error}") from None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file (zstd), whole or not at all."""
        number_lists = [
            f for f in table.schema if pa.types.is_list(f.type) and pa.types.is_primitive(f.type.value_type)
        ]
        with self._whole(name) as (fs, path):
            # Ids and log-probabilities repeat seldom, but their high bytes are alike: set apart, they shrink by a fifth.
            pq.write_table(
                table,
                path,
                filesystem=fs,
                compression="zstd",
                use_dictionary=False,
                column_encoding={f"{field.name}.list.element": "BYTE_STREAM_SPLIT" for field in number_lists},
            )

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a Parquet file, or some columns of it; ArtifactError where it is truncated or none."""
        fs, root = self._open()
        try:
            return pq.ParquetFile(f"{root}/{name}", filesystem=fs).read(columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{self.path(name)}: not a whole Parquet file: {error}") from None

    def table_metadata(self, name: str) -> dict[bytes, bytes]:
        """The key-value metadata in a Parquet file's footer; ArtifactError where the file is truncated or none."""
        fs, root = self._open()
        try:
            return pq.read_schema(f"{root}/{name}", filesystem=fs).metadata or {}
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{self.path(name)}: not a whole Parquet file: {error}") from None

    def rename(self, old: str, new: str) -> None:
        """Renames a file inside."""
        fs, root = self._open()
        fs.move(f"{root}/{old}", f"{root}/{new}")

    def delete(self) -> None:
        """Deletes the folder with all that is in it."""
        fs, root = self._open()
        if fs.get_file_info(root).type != pafs.FileType.NotFound:
            fs.delete_dir(root)

    def local(self, cache: Path) -> Path:
        """The folder as a local path: itself where it is local, else a copy below `cache`."""
        fs, root = self._open()
        if self.is_local:
            return Path(root)
        copy = cache / self.uri.split("://", 1)[1]
        copy.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(root, str(copy), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        return copy

    def upload(self, folder: Path) -> None:
        """Copies a local folder's files to here."""
        fs, root = self._open()
        fs.create_dir(root, recursive=True)
        pafs.copy_files(str(folder), root, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
