"""Computes the training-mode advantage (Min-CE: the source least surprised by the ground truth) and a teacher's lead.

`M_i = argmin_j CE_j(x_i, y_i)` per example (ProFuser, arXiv 2408.04998). The paper's cross-entropy is in nats per token of each
source's own tokenizer, which is not comparable between tokenizers; bits per byte of the response are.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

LN2 = float(np.log(2.0))


def bits_per_byte(nats: Float[np.ndarray, "..."], num_bytes: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Converts the negative log-likelihood of a response from nats to bits per UTF-8 byte."""
    return np.asarray(nats / (LN2 * np.maximum(num_bytes, 1)))


def training_advantage(
    nats: Float[np.ndarray, "N M"],
    num_tokens: Int[np.ndarray, "N M"],
    num_bytes: Int[np.ndarray, "N"],
    metric: Literal["bits_per_byte", "nats_per_token"],
) -> Float[np.ndarray, "N M"]:
    """Returns the values that Min-CE compares, per row and source; lower is better, NaN where a source refused the row.

    Args:
        nats: float64 sums of `-log p` over the ground truth's tokens, end of turn included.
        num_tokens: number of tokens in each sum.
        num_bytes: UTF-8 bytes of the response.
        metric: the unit.
    """
    if metric == "bits_per_byte":
        return bits_per_byte(nats, num_bytes[:, None])
    return nats / np.maximum(num_tokens, 1)


def min_ce(advantages: Float[np.ndarray, "N M"]) -> Int[np.ndarray, "N"]:
    """Returns the index of the teacher per row, ties to the first source; -1 where every source refused the row."""
    known = ~np.isnan(advantages)
    best = np.argmin(np.where(known, advantages, np.inf), axis=1)
    return np.where(known.any(axis=1), best, -1)


def margins(advantages: Float[np.ndarray, "N M"], mode: Literal["inference", "training"]) -> Float[np.ndarray, "N"]:
    """Returns the lead of the best source, 0 (a tie) to 1 (no rival). This measure is not from the paper.

    Training mode: `1 - CE_1 / CE_2`, the share by which the ground truth is less surprising to the best source than to the second,
    the same in any unit. Inference mode: `(votes_1 - votes_2) / sum(votes)`; 0 where there are no votes.

    Args:
        advantages: cross-entropies, NaN where a source refused the row; or votes for each answer.
        mode: which of the two `advantages` holds.
    """
    if mode == "training":
        first, second = _two_smallest(np.where(np.isnan(advantages), np.inf, advantages), np.inf)
        return 1.0 - np.divide(first, second, out=np.ones_like(first), where=second > 0)
    first, second = _two_smallest(-advantages, 0.0)
    total = advantages.sum(axis=1)
    return np.divide(second - first, total, out=np.zeros_like(first), where=total > 0)


def _two_smallest(
    values: Float[np.ndarray, "N M"], missing: float
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns the two smallest values per row; `missing` is the second if there is only one."""
    ordered = np.sort(np.pad(values, ((0, 0), (0, 1)), constant_values=missing), axis=1)
    return ordered[:, 0], ordered[:, 1]
