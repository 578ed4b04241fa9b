"""Sums masses that meet on one target token, and keeps the K largest.

Legend: N positions, C candidates per position, K top-k kept.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from profuser.signals.codec import TopK


def sum_top_k(ids: Int32[np.ndarray, "N C"], logprobs: Float[np.ndarray, "N C"], top_k: int) -> TopK:
    """Sums the masses of equal ids and keeps the `top_k` largest; the rest belongs to the tail.

    Rows whose candidates are all different, mapped and descending pass unchanged, to the bit.

    Args:
        ids: target ids of the candidates, -1 for the tail.
        logprobs: their natural log-probabilities; -inf for an empty place.
        top_k: K, width of the result.

    Returns:
        Distributions in the dtype of `logprobs`; equal masses are ordered by id.
    """
    num, width = ids.shape
    kept = min(top_k, width)
    out_ids = np.zeros((num, top_k), dtype=np.int32)
    out_logprobs = np.full((num, top_k), -np.inf, dtype=logprobs.dtype)
    out_ids[:, :kept], out_logprobs[:, :kept] = ids[:, :kept], logprobs[:, :kept]
    merge = np.flatnonzero(_needs_merging(ids, logprobs))
    if len(merge):
        merged_ids, merged_logprobs = _merge(ids[merge], logprobs[merge])
        out_ids[merge, :kept] = merged_ids[:, :kept]
        out_logprobs[merge, :kept] = merged_logprobs[:, :kept]
    out_ids[out_logprobs == -np.inf] = 0
    return TopK(ids=out_ids, logprobs=out_logprobs)


def _needs_merging(ids: Int32[np.ndarray, "N C"], logprobs: Float[np.ndarray, "N C"]) -> Bool[np.ndarray, "N"]:
    """Rows with a candidate for the tail, two for the same id, or out of order."""
    full = logprobs > -np.inf
    numbered = np.where(full, ids, -2 - np.arange(ids.shape[1], dtype=np.int32))
    numbered.sort(axis=1)
    doubled = (numbered[:, 1:] == numbered[:, :-1]).any(axis=1)
    rising = (logprobs[:, 1:] > logprobs[:, :-1]).any(axis=1)
    return doubled | rising | ((ids < 0) & full).any(axis=1)


def _merge(
    ids: Int32[np.ndarray, "N C"], logprobs: Float[np.ndarray, "N C"]
) -> tuple[Int32[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
    """Sums per id and sorts by mass, both by packed integers: sorting rows of them needs no gather by an argsort."""
    num, width = ids.shape
    mass = np.where(ids < 0, np.float32(0.0), np.exp(logprobs.astype(np.float32)))
    bits = max(1, (width - 1).bit_length())
    keys = (ids.astype(np.int64) << bits) | np.arange(width)
    keys.sort(axis=1)
    rows = np.arange(num)[:, None]
    sorted_ids, sorted_mass = keys >> bits, mass[rows, keys & ((1 << bits) - 1)]
    first = np.ones((num, width), dtype=bool)
    first[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
    begins = np.flatnonzero(first)
    sums = np.zeros(num * width, dtype=np.float32)
    sums[begins] = np.add.reduceat(sorted_mass.reshape(-1), begins)
    return _by_mass(np.maximum(sorted_ids, 0), sums.reshape(num, width), logprobs.dtype)


def _by_mass(
    ids: Int[np.ndarray, "N C"], mass: Float[np.ndarray, "N C"], dtype: np.dtype
) -> tuple[Int32[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
    """Orders by descending mass, equal ones by id; the bits of a positive float32 rise with its value: a key."""
    keys = (mass.view(np.int32).astype(np.int64) << 32) | (np.int64(0xFFFFFFFF) - ids)
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    ordered = (np.int64(0xFFFFFFFF) - (keys & np.int64(0xFFFFFFFF))).astype(np.int32)
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.ascontiguousarray(keys >> 32).astype(np.int32).view(np.float32)).astype(dtype)
    return ordered, logprobs
