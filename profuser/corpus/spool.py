"""Rows on their way to shards: kept on disk until it is known which go where, and cut into shards of equal size."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.errors import ProfuserError


class Spool:
    """A table that grows by rows, in an unnamed file of the temporary folder: however a process ends, nothing is left of it.

    Args:
        schema: of the rows.
        batch_rows: rows that are in memory at once.
    """

    def __init__(self, schema: pa.Schema, batch_rows: int):
        self._schema, self._batch_rows = schema, batch_rows
        self._rows: list[Mapping[str, Any]] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the spool)
        with _room():
            self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row; fields that the schema lacks are left out.

        Raises:
            ProfuserError: the temporary folder is full.
        """
        self._rows.append(row)
        if len(self._rows) == self._batch_rows:
            self._flush()

    def tables(self) -> Iterator[pa.Table]:
        """All rows in order, a batch at a time; then none can be added any more."""
        self._flush()
        with _room():
            self._writer.close()
        reader = pa.ipc.open_file(self._file)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])

    def _flush(self) -> None:
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            self._rows.clear()
            with _room():
                self._writer.write_batch(batch)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProfuserError(
            f"{tempfile.gettempdir()}: the corpus cannot be kept there while it is read: {error.strerror or error}; "
            "make room, or name another folder in TMPDIR"
        ) from None


class ShardWriter:
    """Cuts a stream of tables into the shards of an artifact.

    Args:
        artifact: what the rows go to.
        rows_per_shard: rows in all but the last shard.
    """

    def __init__(self, artifact: Artifact, rows_per_shard: int):
        self._artifact, self._rows_per_shard = artifact, rows_per_shard
        self._left = artifact.schema.empty_table()
        self._num_shards = self.num_rows = 0

    def add(self, rows: pa.Table) -> None:
        """Writes the shards that these rows fill, and keeps the rest."""
        if rows.num_rows:
            self._left = pa.concat_tables([self._left, rows])
        while self._left.num_rows >= self._rows_per_shard:
            self._write(self._left.slice(0, self._rows_per_shard))
            self._left = self._left.slice(self._rows_per_shard)

    def close(self) -> None:
        """Writes what is left as the last shard."""
        if self._left.num_rows:
            self._write(self._left)

    def _write(self, rows: pa.Table) -> None:
        self._artifact.write_shard(self._num_shards, rows, {"rows": rows.num_rows})
        self._num_shards += 1
        self.num_rows += rows.num_rows
