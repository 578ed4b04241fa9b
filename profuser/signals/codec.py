"""Top-k distributions of next tokens, and their form in Parquet: two flat list columns, K entries per token.

Legend: T tokens of a row, K top-k, B rows (B1 = B + 1), N tokens of all rows together.

Log-probabilities are natural and at temperature 1. Stored sizes with K = 10 and a vocabulary of up to 65,536: 2 bytes
per id and 2 per log-probability, 40 bytes per token before zstd.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Integer

from profuser.errors import ArtifactError
from profuser.signals.ragged import Ragged, offsets_of

CODEC_VERSION = 1
"""Of the column layout. Saved in manifests; a reader refuses another."""


@dataclass(frozen=True, eq=False)
class TopK:
    """The K most probable next tokens at each of T positions.

    Position t is the distribution from which token t was drawn (not that of its successor). Log-probabilities descend
    along K; an empty place is id 0 with log-probability -inf.

    Raises:
        ValueError: the two arrays differ in shape.
    """

    ids: Integer[np.ndarray, "T K"]
    logprobs: Float[np.ndarray, "T K"]

    def __post_init__(self) -> None:
        """Checks that there is one log-probability per id."""
        if self.ids.shape != self.logprobs.shape or self.ids.ndim != 2:
            raise ValueError(
                f"top-k ids have shape {self.ids.shape}, log-probabilities {self.logprobs.shape}: both are [T, K]"
            )

    @property
    def num_positions(self) -> int:
        """T."""
        return self.ids.shape[0]

    @property
    def top_k(self) -> int:
        """K."""
        return self.ids.shape[1]

    def tail_mass(self) -> Float[np.ndarray, "T"]:
        """Probability of everything outside the top-k, `1 - sum(exp(logprob))`, clipped to [0, 1] against rounding."""
        mass = np.exp(self.logprobs.astype(np.float32)).sum(axis=1)
        return np.clip(np.float32(1.0) - mass, 0.0, 1.0)

    def __getitem__(self, positions: slice) -> "TopK":
        """The distributions of a range of positions, as views."""
        return TopK(ids=self.ids[positions], logprobs=self.logprobs[positions])


@dataclass(frozen=True, eq=False)
class RaggedTopK:
    """Distributions of B rows laid end to end: row i is positions `[offsets[i], offsets[i + 1])` of `topk`."""

    topk: TopK
    offsets: Integer[np.ndarray, "B1"]

    @classmethod
    def from_rows(cls, rows: Sequence[TopK]) -> "RaggedTopK":
        """Lays rows end to end; all have the same K.

        Raises:
            ValueError: no row, or rows of different K.
        """
        if len({row.top_k for row in rows}) != 1:
            raise ValueError(f"top-k of the rows: {sorted({row.top_k for row in rows})}, expected one value for all")
        ids = np.concatenate([row.ids for row in rows])
        logprobs = np.concatenate([row.logprobs for row in rows])
        return cls(TopK(ids=ids, logprobs=logprobs), offsets_of(np.array([row.num_positions for row in rows])))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> TopK:
        """One row, as views."""
        return self.topk[self.offsets[index] : self.offsets[index + 1]]

    def rows(self) -> list[TopK]:
        """All rows, as views."""
        return [self.row(index) for index in range(len(self))]


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id of a vocabulary: uint16 up to 65,536 ids, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def to_columns(rows: RaggedTopK | Sequence[TopK], vocab_size: int) -> tuple[pa.ListArray, pa.ListArray]:
    """Packs distributions into two list columns: ids (list of uint16 or int32) and log-probabilities (list of
    halffloat).

    Args:
        rows: the distributions of B rows, all of the same K.
        vocab_size: width of the logits; decides the type of the ids.

    Returns:
        Two columns of B lists, each list with T * K entries.

    Raises:
        ArtifactError: an id is outside the vocabulary.
    """
    ragged = rows if isinstance(rows, RaggedTopK) else RaggedTopK.from_rows(rows)
    ids = ragged.topk.ids
    if ids.size and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
        raise ArtifactError(
            f"top-k ids run from {ids.min()} to {ids.max()}, but the vocabulary has {vocab_size} entries"
        )
    offsets = pa.array((np.asarray(ragged.offsets) * ragged.topk.top_k).astype(np.int32))
    flat_ids = pa.array(np.ascontiguousarray(ids, dtype=id_dtype(vocab_size)).reshape(-1))
    flat_logprobs = pa.array(np.ascontiguousarray(ragged.topk.logprobs, dtype=np.float16).reshape(-1))
    return pa.ListArray.from_arrays(offsets, flat_ids), pa.ListArray.from_arrays(offsets, flat_logprobs)


def from_columns(ids: pa.Array | pa.ChunkedArray, logprobs: pa.Array | pa.ChunkedArray, top_k: int) -> RaggedTopK:
    """Reads what `to_columns` wrote, without a copy where a column is one chunk. A null list reads as a row of no
    tokens.

    Args:
        ids: column of lists of T * K ids.
        logprobs: column of lists of T * K natural log-probabilities.
        top_k: K, from the manifest of the artifact.

    Raises:
        ArtifactError: the columns disagree with each other or with K.
    """
    id_rows, logprob_rows = from_list_column(ids), from_list_column(logprobs)
    if not np.array_equal(id_rows.offsets, logprob_rows.offsets):
        raise ArtifactError("top-k ids and log-probabilities have lists of different lengths")
    if top_k < 1 or (id_rows.offsets % top_k).any():
        raise ArtifactError(
            f"a list of top-k ids does not divide into {top_k} per token: the artifact has another top_k"
        )
    topk = TopK(ids=id_rows.values.reshape(-1, top_k), logprobs=logprob_rows.values.reshape(-1, top_k))
    return RaggedTopK(topk=topk, offsets=id_rows.offsets // top_k)


def from_list_column(column: pa.Array | pa.ChunkedArray) -> Ragged:
    """A list column of numbers as one flat array, without a copy where it is one chunk. A null list reads as an empty
    row.

    Raises:
        ArtifactError: the column is not one of lists of numbers, or a list holds a null.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(array, pa.ListArray | pa.LargeListArray):
        raise ArtifactError(f"expected a column of lists, got {array.type}")
    lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(array.offsets.to_numpy()), 0)
    values = array.flatten()
    if values.null_count:
        raise ArtifactError(f"{values.null_count} entries of a list column are null")
    return Ragged(values=values.to_numpy(zero_copy_only=True), offsets=offsets_of(lengths))
