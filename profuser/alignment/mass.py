"""Sums the masses that are mapped to the same target token and keeps the K largest.

Legend: N positions, n selected positions, C candidates per position, K top-k, V vocabulary of the source, S entries of
a lookup table.
"""

from functools import cache
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Integer

from profuser.signals.codec import TopK


def sum_top_k(ids: Int32[np.ndarray, "N C"], logprobs: Float[np.ndarray, "N C"], top_k: int) -> TopK:
    """Sums the masses of equal ids and keeps the `top_k` largest; the rest goes to the tail.

    Rows whose candidates are all distinct, mapped and in descending order are returned unchanged, to the bit.

    Args:
        ids: target ids of the candidates, -1 for the tail.
        logprobs: their natural log-probabilities; -inf for an empty slot.
        top_k: K, width of the result.

    Returns:
        Distributions in the dtype of `logprobs`; equal masses are ordered by id.
    """
    out = empty_top_k(len(ids), top_k)
    rows = np.arange(len(ids))
    sum_mapped(TopK(ids, logprobs), rows, np.zeros(0, dtype=np.int32), out, rows)
    return TopK(out.ids, out.logprobs.astype(logprobs.dtype, copy=False))


def sum_mapped(
    source: TopK,
    positions: Int[np.ndarray, "n"],
    table: Int32[np.ndarray, "V"],
    out: TopK,
    places: Int[np.ndarray, "n"],
) -> None:
    """Applies `sum_top_k` to selected positions of a source and writes the results to `places` of `out` (from `empty_top_k`).

    `table` maps the source's ids to the target's; if it is empty, the ids are already the target's.
    """
    codes, values, masses = _coded(source.logprobs)
    _compiled()(source.ids, codes, values, masses, positions, table, out.ids, out.logprobs, places)


def empty_top_k(num: int, top_k: int) -> TopK:
    """Returns distributions without candidates, in single precision."""
    return TopK(np.zeros((num, top_k), dtype=np.int32), np.full((num, top_k), -np.inf, dtype=np.float32))


def _coded(
    logprobs: Float[np.ndarray, "N C"],
) -> tuple[Integer[np.ndarray, "N C"], Float32[np.ndarray, "S"], Float32[np.ndarray, "S"]]:
    """Returns indices into two tables, of log-probabilities and of masses. In half precision, the bits are the indices."""
    if logprobs.dtype == np.float16:
        return logprobs.view(np.uint16), *_half_tables()
    values = logprobs.astype(np.float32, copy=False).reshape(-1)
    return np.arange(logprobs.size, dtype=np.int32).reshape(logprobs.shape), values, np.exp(values)


@cache
def _half_tables() -> tuple[Float32[np.ndarray, "S"], Float32[np.ndarray, "S"]]:
    """Returns every half-precision number, indexed by its bits, and its exponential."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return values, np.exp(values)


@no_type_check
def _sum_rows(ids, codes, values, masses, positions, table, out_ids, out_logprobs, places):
    """Computes `sum_top_k` for each row; compiled by Numba (`_compiled`).

    Merges equal ids of the row in a hash table, then inserts each mass into the sorted result, searching from its end. A row costs
    about C steps, because candidates arrive in nearly descending order.
    """
    width = ids.shape[1]
    top_k = out_ids.shape[1]
    size = 4
    while size < 16 * width:
        size *= 2
    entries = np.full(size, -1, np.int32)
    keys, slots, repeats = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.bool_)
    sums, bests = np.empty(width, np.float32), np.empty(width, np.float32)
    for row in range(len(positions)):
        position, place = positions[row], places[row]
        found, changed, before = 0, False, np.float32(0.0)
        for column in range(width):
            key, code = np.int32(ids[position, column]), codes[position, column]
            logprob = values[code]
            if logprob == -np.inf:
                continue
            if len(table):
                key = table[key]
            if key < 0:
                changed = True
                continue
            changed |= logprob > before
            before = logprob
            slot = (key * 40503) & (size - 1)  # multiplicative hashing: 2**16 over the golden ratio
            while entries[slot] >= 0 and keys[entries[slot]] != key:
                slot = (slot + 1) & (size - 1)
            entry = entries[slot]
            if entry < 0:
                entries[slot], slots[found] = found, slot
                keys[found], bests[found], sums[found], repeats[found] = key, logprob, masses[code], False
                found += 1
            else:
                sums[entry] += masses[code]
                repeats[entry] = changed = True
        kept = 0
        for entry in range(found):
            entries[slots[entry]] = -1
            key, logprob = keys[entry], bests[entry]
            if repeats[entry]:
                logprob = min(np.log(sums[entry]), np.float32(0.0))
            at = kept
            while (
                at > 0
                and changed
                and out_logprobs[place, at - 1] <= logprob
                and (out_logprobs[place, at - 1] < logprob or out_ids[place, at - 1] > key)
            ):
                at -= 1
            if at == top_k:
                continue
            kept = min(kept + 1, top_k)
            for later in range(kept - 1, at, -1):
                out_ids[place, later], out_logprobs[place, later] = (
                    out_ids[place, later - 1],
                    out_logprobs[place, later - 1],
                )
            out_ids[place, at], out_logprobs[place, at] = key, logprob


@cache
def _compiled() -> Any:
    """Returns `_sum_rows` compiled, cached on disk if a cache folder is writable. Importing Numba takes half a second."""
    from numba import njit

    try:
        return njit(cache=True, nogil=True)(_sum_rows)
    except RuntimeError:
        return njit(nogil=True)(_sum_rows)
