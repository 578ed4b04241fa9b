"""Training-mode advantage: Min-CE, the source to which the ground truth is least surprising.

`M_i = argmin_j CE_j(x_i, y_i)` per example (ProFuser, arXiv 2408.04998). The paper's cross-entropy is in nats per token of each
source's own tokenizer, which is not comparable between tokenizers; bits per byte of the response are.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

LN2 = float(np.log(2.0))


def bits_per_byte(nats: Float[np.ndarray, "..."], num_bytes: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Negative log-likelihood of a response in nats, as bits per UTF-8 byte of it."""
    return np.asarray(nats / (LN2 * np.maximum(num_bytes, 1)))


def training_advantage(
    nats: Float[np.ndarray, "N M"],
    num_tokens: Int[np.ndarray, "N M"],
    num_bytes: Int[np.ndarray, "N"],
    metric: Literal["bits_per_byte", "nats_per_token"],
) -> Float[np.ndarray, "N M"]:
    """What Min-CE compares, per row and source; lower is better, NaN where a source refused the row.

    Args:
        nats: float64 sums of `-log p` over the ground truth's tokens, end of turn included.
        num_tokens: tokens over which each sum runs.
        num_bytes: UTF-8 bytes of the response.
        metric: the unit.
    """
    if metric == "bits_per_byte":
        return bits_per_byte(nats, num_bytes[:, None])
    return nats / np.maximum(num_tokens, 1)


def min_ce(advantages: Float[np.ndarray, "N M"]) -> Int[np.ndarray, "N"]:
    """Index of the teacher per row, ties to the first source; -1 where every source refused the row."""
    known = ~np.isnan(advantages)
    best = np.argmin(np.where(known, advantages, np.inf), axis=1)
    return np.where(known.any(axis=1), best, -1)
