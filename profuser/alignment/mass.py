"""Sums masses that meet on one target token, and keeps the K largest.

Legend: N positions, C candidates per position, K top-k kept, n positions that change.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Integer

from profuser.signals.codec import TopK

BLOCK = 1 << 16
"""Candidates of one pass: what is made of them on the way stays in a core's cache."""
MAGNITUDE = np.int32(0x7FFFFFFF)
"""A float32's bits without its sign. Of log-probabilities, never positive, they rise as the mass falls: a key to sort by."""


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
    step = max(1, BLOCK // max(1, width))
    for start in range(0, num, step):
        some = slice(start, start + step)
        # Half precision is converted once: every operation on it would do so again.
        block = logprobs[some].astype(np.float32)
        out_ids[some, :kept], out_logprobs[some, :kept] = _sum_block(ids[some], block, kept)
    return TopK(ids=out_ids, logprobs=out_logprobs)


def _sum_block(
    ids: Int32[np.ndarray, "N C"], logprobs: Float32[np.ndarray, "N C"], kept: int
) -> tuple[Int32[np.ndarray, "N kept"], Float32[np.ndarray, "N kept"]]:
    """`sum_top_k` of some positions; the log-probabilities are overwritten."""
    mapped = ids >= 0
    there = logprobs > -np.inf
    change = (logprobs[:, 1:] > logprobs[:, :-1]).any(axis=1) | (there & ~mapped).any(axis=1)
    mapped &= there
    keys = _by_id(ids, mapped)
    repeats = _repeats(keys)
    change |= repeats.any(axis=1)
    logprobs[~mapped] = -np.inf
    _sum_repeats(keys, repeats, logprobs)
    if change.all():
        return _largest(ids, logprobs, kept)
    best_ids, best = np.where(mapped, ids, 0)[:, :kept], logprobs[:, :kept]
    if change.any():
        best_ids[change], best[change] = _largest(ids[change], logprobs[change], kept)
    return best_ids, best


def _by_id(ids: Int32[np.ndarray, "N C"], mapped: Bool[np.ndarray, "N C"]) -> Integer[np.ndarray, "N C"]:
    """Candidates by id and place: both in one number, in which those that are not mapped come last."""
    bits = _place_bits(ids.shape[1])
    short = int(ids.max(initial=0)) < np.iinfo(np.int32).max >> bits
    kind = np.int32 if short else np.int64
    keys = np.where(mapped, ids, np.iinfo(kind).max >> bits).astype(kind, copy=False)
    keys = (keys << bits) | np.arange(ids.shape[1], dtype=kind)
    keys.sort(axis=1)
    return keys


def _repeats(keys: Integer[np.ndarray, "N C"]) -> Bool[np.ndarray, "N C"]:
    """Whether a candidate, in the order of `_by_id`, has the id of the one before it."""
    bits = _place_bits(keys.shape[1])
    index = keys >> bits
    out = np.zeros(keys.shape, dtype=bool)
    np.equal(index[:, 1:], index[:, :-1], out=out[:, 1:])
    out[:, 1:] &= index[:, 1:] < np.iinfo(keys.dtype).max >> bits
    return out


def _sum_repeats(
    keys: Integer[np.ndarray, "n C"], repeats: Bool[np.ndarray, "n C"], logprobs: Float32[np.ndarray, "n C"]
) -> None:
    """Gives the mass of candidates with the same id to the first of them, in place."""
    places = np.flatnonzero(repeats)
    if not len(places):
        return
    width = keys.shape[1]
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    flat, mask = logprobs.reshape(-1), (1 << _place_bits(width)) - 1

    def at(sorted_places: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        return sorted_places - sorted_places % width + (keys.reshape(-1)[sorted_places] & mask)

    first, others = at(places[begins] - 1), at(places)
    total = np.exp(flat[first]) + np.add.reduceat(np.exp(flat[others]), begins)
    flat[others] = -np.inf
    flat[first] = np.minimum(np.log(total), 0.0)


def _largest(
    ids: Int32[np.ndarray, "n C"], logprobs: Float32[np.ndarray, "n C"], kept: int
) -> tuple[Int32[np.ndarray, "n kept"], Float32[np.ndarray, "n kept"]]:
    """The largest masses in descending order, equal ones by id; sorted by numbers that hold both, which need no gathering."""
    keys = ((logprobs.view(np.int32) & MAGNITUDE).astype(np.int64) << 32) | ids.astype(np.uint32)
    keys.sort(axis=1)
    best = keys[:, :kept]
    best_ids, best_logprobs = best.astype(np.int32), -(best >> 32).astype(np.int32).view(np.float32)
    best_ids[best_logprobs == -np.inf] = 0
    return best_ids, best_logprobs


def _place_bits(width: int) -> int:
    return max(1, (width - 1).bit_length())
