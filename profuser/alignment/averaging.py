"""Averages several sources' distributions at the target's positions: all sources teach together, none is chosen.

Legend: B rows, b rows that one source covers, B1 = B + 1 offsets, T positions of all rows, M sources, K top-k.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

from profuser.alignment.mass import sum_top_k
from profuser.alignment.transport import TransportedRows
from profuser.signals.codec import RaggedTopK, TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import Rule


def average_rows(parts: Sequence[TransportedRows], ranks: Int[np.ndarray, "B M"], top_k: int) -> TransportedRows:
    """Averages the distributions of M sources over the same B rows; a row is refused if all sources refuse it.

    Each position takes the rule of the best-ranked source that has a distribution there.

    Args:
        parts: transported rows of each source, spread over all B rows (`spread_rows`).
        ranks: rank of each source, per row; 0 is the best.
        top_k: K, candidates to keep.
    """
    offsets = parts[0].topk.offsets
    row_of = parts[0].rules.row_of
    rules = np.stack([part.rules.values for part in parts])
    best = np.where(rules == Rule.NONE, np.iinfo(ranks.dtype).max, ranks[row_of].T).argmin(axis=0)
    refused = {row: reason for row, reason in parts[0].refused.items() if all(row in part.refused for part in parts)}
    return TransportedRows(
        RaggedTopK(average_top_k([part.topk.topk for part in parts], top_k), offsets),
        Ragged(rules[best, np.arange(len(row_of))], offsets),
        refused,
    )


def average_top_k(parts: Sequence[TopK], top_k: int) -> TopK:
    """Returns the arithmetic mean of the available distributions at each of T positions.

    `p(v) = 1/m * sum_j p_j(v)` over the m sources with a distribution there; a source that does not list a candidate adds 0.
    The `top_k` most probable candidates of the union are kept and the rest goes to the tail. The kept mass is thus at most the
    mean of the listed masses, and equal to it if the union has at most K candidates. A position without distributions gets none.

    Args:
        parts: distributions of each source, T positions over one vocabulary.
        top_k: K, candidates to keep.

    Returns:
        Distributions in float32.
    """
    ids = np.concatenate([part.ids for part in parts], axis=1).astype(np.int32)
    # In half precision the division alone would cost an error of a thousandth.
    logprobs = np.concatenate([part.logprobs for part in parts], axis=1).astype(np.float32)
    num_sources = sum((part.logprobs[:, 0] > -np.inf).astype(np.float32) for part in parts)
    return sum_top_k(ids, logprobs - np.log(np.maximum(num_sources, 1))[:, None], top_k)


def spread_rows(
    part: TransportedRows, rows: Int[np.ndarray, "b"], offsets: Integer[np.ndarray, "B1"]
) -> TransportedRows:
    """Spreads b rows over B rows; the other rows have no distribution and are refused.

    Args:
        part: transported rows of one source.
        rows: their indices among the B rows, ascending.
        offsets: row offsets of all B rows.
    """
    num_rows, num = len(offsets) - 1, int(offsets[-1])
    places = Ragged(np.arange(num), np.asarray(offsets))
    filled = np.isin(places.row_of, rows)
    given = part.topk.topk
    ids, logprobs = np.zeros((num, given.top_k), np.int32), np.full((num, given.top_k), -np.inf, given.logprobs.dtype)
    ids[filled], logprobs[filled] = given.ids, given.logprobs
    rules = np.full(num, Rule.NONE, dtype=np.uint8)
    rules[filled] = part.rules.values
    refused = dict.fromkeys(np.setdiff1d(np.arange(num_rows), rows).tolist(), "the source refused the row")
    refused |= {int(rows[row]): reason for row, reason in part.refused.items()}
    return TransportedRows(RaggedTopK(TopK(ids, logprobs), offsets), Ragged(rules, offsets), refused)
