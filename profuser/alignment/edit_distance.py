"""The nearest token by edit distance over bytes: FuseLLM's MinED mapping, kept as a baseline.

Legend: V vocabulary, C candidates, L bytes of the longest candidate.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, UInt8

from profuser.alignment.token_bytes import TokenBytes


def nearest_tokens(tokens: TokenBytes, texts: Sequence[bytes]) -> Int32[np.ndarray, "texts"]:
    """The token with the smallest Levenshtein distance over bytes to each byte string; ties go to the lowest id.

    The distance is at least the difference in length, so candidates are taken by rising difference, until none can be
    nearer.

    Args:
        tokens: the table to search; -1 comes back where it has no bytes at all.
        texts: byte strings.
    """
    by_length = {int(size): np.flatnonzero(tokens.lengths == size) for size in np.unique(tokens.lengths) if size}
    return np.array([_nearest(tokens, by_length, text) for text in texts], dtype=np.int32)


def _nearest(tokens: TokenBytes, by_length: dict[int, np.ndarray], text: bytes) -> int:
    query = np.frombuffer(text, dtype=np.uint8)
    best, best_id = np.iinfo(np.int64).max, -1
    for size in sorted(by_length, key=lambda size: abs(size - len(text))):
        if abs(size - len(text)) > best:
            break
        ids = by_length[size]
        distances = edit_distances(query, tokens.blob[tokens.starts[ids][:, None] + np.arange(size)])
        nearest = int(distances.argmin())
        found = (int(distances[nearest]), int(ids[nearest]))
        best, best_id = min((best, best_id), found) if best_id >= 0 else found
    return best_id


def edit_distances(query: UInt8[np.ndarray, "Q"], candidates: UInt8[np.ndarray, "C L"]) -> Int[np.ndarray, "C"]:
    """Levenshtein distance of one byte string to C others of equal length, all of them in one pass over the table."""
    num, size = candidates.shape
    row = np.broadcast_to(np.arange(size + 1), (num, size + 1)).copy()
    for place, byte in enumerate(query, start=1):
        above = row
        row = np.empty_like(above)
        row[:, 0] = place
        cheapest = np.minimum(above[:, 1:] + 1, above[:, :-1] + (candidates != byte))
        for column in range(size):
            np.minimum(cheapest[:, column], row[:, column] + 1, out=row[:, column + 1])
    return row[:, -1]
