"""Spools rows on disk until their destination is known, and cuts them into shards of equal size."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.errors import ProfuserError


class Spool:
    """A table that grows by rows, in an unnamed temporary file: nothing is left of it, however the process ends.

    Args:
        schema: schema of the rows.
        batch_rows: rows held in memory at once.
    """

    def __init__(self, schema: pa.Schema, batch_rows: int):
        self._schema, self._batch_rows = schema, batch_rows
        self._rows: list[Mapping[str, Any]] = []
        self._is_whole = False
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the spool)
        with _naming_the_folder():
            self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row, without the fields that the schema lacks.

        Raises:
            ProfuserError: the temporary folder is full.
        """
        self._rows.append(row)
        if len(self._rows) == self._batch_rows:
            self._flush()

    def tables(self) -> Iterator[pa.Table]:
        """Yields all rows in order, a batch at a time, each time that it is called; no more can be added after that."""
        if not self._is_whole:
            self._flush()
            with _naming_the_folder():
                self._writer.close()
            self._is_whole = True
        reader = pa.ipc.open_file(self._file)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])

    def _flush(self) -> None:
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            self._rows.clear()
            with _naming_the_folder():
                self._writer.write_batch(batch)


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    """Turns an OSError into a ProfuserError that names the temporary folder."""
    try:
        yield
    except OSError as error:
        raise ProfuserError(
            f"{tempfile.gettempdir()}: the corpus cannot be spooled there: {error.strerror or error}; "
            "free some space, or set TMPDIR to another folder"
        ) from None


class ShardWriter:
    """Cuts a stream of tables into the shards of an artifact.

    Args:
        artifact: the artifact that the rows are written to.
        rows_per_shard: rows in every shard but the last.
    """

    def __init__(self, artifact: Artifact, rows_per_shard: int):
        self._artifact, self._rows_per_shard = artifact, rows_per_shard
        self._left = artifact.schema.empty_table()
        self._num_shards = self.num_rows = 0

    def add(self, rows: pa.Table) -> None:
        """Adds rows: writes the shards that are full, and keeps the rest."""
        if rows.num_rows:
            self._left = pa.concat_tables([self._left, rows])
        while self._left.num_rows >= self._rows_per_shard:
            self._write(self._left.slice(0, self._rows_per_shard))
            self._left = self._left.slice(self._rows_per_shard)

    def close(self) -> None:
        """Writes the remaining rows as the last shard."""
        if self._left.num_rows:
            self._write(self._left)

    def _write(self, rows: pa.Table) -> None:
        self._artifact.write_shard(self._num_shards, rows, {"rows": rows.num_rows})
        self._num_shards += 1
        self.num_rows += rows.num_rows
