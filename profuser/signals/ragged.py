"""Stores rows of unequal length as one flat array and its row offsets, like an Arrow list column.

Legend: B rows (B1 = B + 1 offsets), N entries of all rows together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped


@dataclass(frozen=True, eq=False)
class Ragged:
    """B rows with N entries in total; row i is `values[offsets[i]:offsets[i + 1]]`.

    Raises:
        ValueError: the offsets do not begin at 0, decrease, or do not end at the number of values.
    """

    values: Shaped[np.ndarray, "N ..."]
    offsets: Integer[np.ndarray, "B1"]

    def __post_init__(self) -> None:
        """Checks that the offsets divide all values into rows."""
        bounds = (int(self.offsets[0]), int(self.offsets[-1]))
        if bounds != (0, len(self.values)) or (np.diff(self.offsets) < 0).any():
            raise ValueError(
                f"row offsets run from {bounds[0]} to {bounds[1]}, expected 0 to {len(self.values)}, ascending"
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Any], dtype: Any = None) -> "Ragged":
        """Concatenates rows (arrays or lists of numbers); `dtype`, if given, is the type of the values."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        lengths = np.array([len(row) for row in arrays], dtype=np.int64)
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype or np.int64)
        return cls(values=values, offsets=offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Shaped[np.ndarray, "T ..."]:
        """Returns one row, as a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> Integer[np.ndarray, "B"]:
        """Number of entries of each row."""
        return np.diff(self.offsets)

    @cached_property
    def row_of(self) -> Integer[np.ndarray, "N"]:
        """Row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)


def offsets_of(lengths: Integer[np.ndarray, "B"]) -> Integer[np.ndarray, "B+1"]:
    """Returns the starts of consecutive pieces and the end of the last one: 0, then the cumulative sum."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
