"""Stores top-k distributions of next tokens in Parquet: flat list columns, K entries per token.

Legend: T tokens of a row, K top-k, B rows (B1 = B + 1), N tokens of all rows together, V vocabulary.

Log-probabilities are natural and at temperature 1, stored as float16. The low 16 bits of each id are stored in one column; if the
vocabulary is larger than 65,536, the high bits of a token's K ids (1 bit each for Llama 3, 2 for Qwen) are packed into a few
bytes of another column. With K = 10 a token takes 40 bytes, or up to 44 for vocabularies of up to 524,288, before compression.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int32, Integer, Shaped, UInt8

from profuser.errors import ArtifactError
from profuser.signals.ragged import Ragged, offsets_of

CODEC_VERSION = 2
"""Version of the column layout, saved with every shard; a reader refuses any other."""
LOW_BITS = 16


@dataclass(frozen=True, eq=False)
class TopK:
    """The K most probable next tokens at each of T positions.

    Position t holds the distribution that predicts token t, not token t + 1. Log-probabilities descend
    along K; an empty slot is id 0 with log-probability -inf.

    Raises:
        ValueError: the two arrays differ in shape.
    """

    ids: Integer[np.ndarray, "T K"]
    logprobs: Float[np.ndarray, "T K"]

    def __post_init__(self) -> None:
        """Checks that there is one log-probability per id."""
        if self.ids.shape != self.logprobs.shape or self.ids.ndim != 2:
            raise ValueError(
                f"top-k ids have shape {self.ids.shape}, log-probabilities {self.logprobs.shape}: both must be [T, K]"
            )

    @property
    def num_positions(self) -> int:
        """Number of positions, T."""
        return self.ids.shape[0]

    @property
    def top_k(self) -> int:
        """Number of candidates per position, K."""
        return self.ids.shape[1]

    def tail_mass(self) -> Float[np.ndarray, "T"]:
        """Returns the probability outside the top-k, `1 - sum(exp(logprob))`, clipped to [0, 1] against rounding."""
        mass = np.exp(self.logprobs.astype(np.float32)).sum(axis=1)
        return np.clip(np.float32(1.0) - mass, 0.0, 1.0)

    def __getitem__(self, positions: slice) -> "TopK":
        """Returns the distributions of a range of positions, as views."""
        return TopK(ids=self.ids[positions], logprobs=self.logprobs[positions])


@dataclass(frozen=True, eq=False)
class RaggedTopK:
    """Concatenated distributions of B rows: row i is positions `[offsets[i], offsets[i + 1])` of `topk`."""

    topk: TopK
    offsets: Integer[np.ndarray, "B1"]

    @classmethod
    def from_rows(cls, rows: Sequence[TopK]) -> "RaggedTopK":
        """Concatenates rows, which all have the same K.

        Raises:
            ValueError: there are no rows, or they differ in K.
        """
        if len({row.top_k for row in rows}) != 1:
            raise ValueError(f"top-k of the rows: {sorted({row.top_k for row in rows})}, expected one value for all")
        ids = np.concatenate([row.ids for row in rows])
        logprobs = np.concatenate([row.logprobs for row in rows])
        return cls(TopK(ids=ids, logprobs=logprobs), offsets_of(np.array([row.num_positions for row in rows])))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> TopK:
        """Returns one row, as views."""
        return self.topk[self.offsets[index] : self.offsets[index + 1]]

    def rows(self) -> list[TopK]:
        """Returns all rows, as views."""
        return [self.row(index) for index in range(len(self))]


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest type that holds every id of a vocabulary: uint16 up to 65,536 ids, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << LOW_BITS else np.int32)


def topk_fields(prefix: str, vocab_size: int, nullable: bool = True) -> list[pa.Field]:
    """Returns columns for distributions: `{prefix}_ids`, `{prefix}_logprobs`, and for a large vocabulary `{prefix}_ids_high`.

    With three columns, the id column is called `{prefix}_ids_low`: it must not be read alone.
    """
    fields = [("ids_low", pa.uint16()), ("ids_high", pa.uint8())] if high_bits(vocab_size) else [("ids", pa.uint16())]
    fields.append(("logprobs", pa.float16()))
    return [pa.field(f"{prefix}_{name}", pa.list_(kind), nullable=nullable) for name, kind in fields]


def to_columns(prefix: str, rows: RaggedTopK | Sequence[TopK], vocab_size: int) -> dict[str, pa.ListArray]:
    """Packs distributions into the columns of `topk_fields`, by name.

    Args:
        prefix: prefix of the column names.
        rows: the distributions of B rows, all of the same K.
        vocab_size: V, width of the logits; decides the layout of the ids.

    Returns:
        Columns of B lists: T * K ids (their low 16 bits) and log-probabilities, and the bytes of the high bits.

    Raises:
        ArtifactError: an id is outside the vocabulary.
    """
    ragged = rows if isinstance(rows, RaggedTopK) else RaggedTopK.from_rows(rows)
    ids = ragged.topk.ids
    if ids.size and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
        raise ArtifactError(
            f"top-k ids run from {ids.min()} to {ids.max()}, but the vocabulary has {vocab_size} entries"
        )
    offsets = np.asarray(ragged.offsets)
    bits = high_bits(vocab_size)
    parts: dict[str, np.ndarray] = {
        "ids_low" if bits else "ids": (ids & 0xFFFF if bits else ids).astype(np.uint16, copy=False)
    }
    if bits:
        parts["ids_high"] = _pack(ids >> LOW_BITS, bits)
    parts["logprobs"] = ragged.topk.logprobs.astype(np.float16, copy=False)
    return {f"{prefix}_{name}": _list_column(values, offsets) for name, values in parts.items()}


def from_columns(table: pa.Table | Mapping[str, Any], prefix: str, top_k: int, vocab_size: int) -> RaggedTopK:
    """Reads what `to_columns` wrote. A null list is read as a row without tokens.

    Log-probabilities, and ids of a vocabulary of up to 65,536, are views, not copies, of a column that is one chunk.

    Args:
        table: has the columns of `topk_fields`.
        prefix: prefix of the column names.
        top_k: K, from the settings of the artifact.
        vocab_size: V, width of the logits.

    Raises:
        ArtifactError: the columns disagree with each other or with K.
    """
    bits = high_bits(vocab_size)
    low = from_list_column(table[f"{prefix}_ids_low" if bits else f"{prefix}_ids"])
    logprobs = from_list_column(table[f"{prefix}_logprobs"])
    if not np.array_equal(low.offsets, logprobs.offsets):
        raise ArtifactError(f"{prefix}: ids and log-probabilities have lists of different lengths")
    if top_k < 1 or (low.offsets % top_k).any():
        raise ArtifactError(
            f"{prefix}: a list of ids does not divide into {top_k} per token: the artifact has a different top_k"
        )
    ids, offsets = low.values.reshape(-1, top_k), low.offsets // top_k
    if bits:
        high = from_list_column(table[f"{prefix}_ids_high"])
        width = -(-top_k * bits // 8)
        if not np.array_equal(high.offsets, offsets * width):
            raise ArtifactError(f"{prefix}: the high bits of the ids are not {width} bytes per token")
        ids = ids.astype(np.int32) | _unpack(high.values.reshape(-1, width), top_k, bits) << LOW_BITS
    return RaggedTopK(TopK(ids=ids, logprobs=logprobs.values.reshape(-1, top_k)), offsets)


def high_bits(vocab_size: int) -> int:
    """Returns the number of bits of an id above the low 16."""
    return max(0, (vocab_size - 1).bit_length() - LOW_BITS)


def _pack(values: Integer[np.ndarray, "T K"], bits: int) -> UInt8[np.ndarray, "T bytes"]:
    """Packs the lowest bits of K numbers into as few bytes as possible."""
    places = np.arange(bits - 1, -1, -1)
    single = (values[:, :, None] >> places) & 1
    return np.packbits(single.astype(np.uint8).reshape(len(values), values.shape[1] * bits), axis=1)


def _unpack(packed: UInt8[np.ndarray, "T bytes"], top_k: int, bits: int) -> Int32[np.ndarray, "T K"]:
    """Reverses `_pack`."""
    single = np.unpackbits(packed, axis=1, count=top_k * bits).reshape(len(packed), top_k, bits)
    return single @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int32))


def _list_column(values: Shaped[np.ndarray, "N width"], offsets: Integer[np.ndarray, "B1"]) -> pa.ListArray:
    """Returns a column with one list per row: the values of all its tokens."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.ListArray.from_arrays(pa.array((offsets * values.shape[1]).astype(np.int32)), flat)


def from_list_column(column: pa.Array | pa.ChunkedArray) -> Ragged:
    """Returns a list column of numbers as one flat array, without a copy if it is one chunk. A null list is an empty row.

    Raises:
        ArtifactError: the column does not hold lists of numbers, or a list contains a null.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(array, pa.ListArray | pa.LargeListArray):
        raise ArtifactError(f"expected a column of lists, got {array.type}")
    lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(array.offsets.to_numpy()), 0)
    values = array.flatten()
    if values.null_count:
        raise ArtifactError(f"{values.null_count} entries of a list column are null")
    return Ragged(values=values.to_numpy(zero_copy_only=True), offsets=offsets_of(lengths))
