"""Agreement between judges, and their bias towards long answers. Legend: N rows, M sources, n pairs of values."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two columns of choices (of two rewards, or of the two modes)."""

    first: str
    second: str
    num_rows: int
    """Rows on which both chose."""
    share: float
    """Share of these on which the choices agree, 0 to 1; NaN without rows."""
    kappa: float
    """Cohen's kappa: 1 for full agreement, 0 for chance agreement; NaN if chance alone gives full agreement."""

    @classmethod
    def of(cls, first: str, second: str, one: Int[np.ndarray, "N"], other: Int[np.ndarray, "N"]) -> "Agreement":
        """Compares two columns of choices on the rows where both chose (0 or more): `kappa = (p_o - p_e) / (1 - p_e)`."""
        both = (one >= 0) & (other >= 0)
        one, other = one[both], other[both]
        if not len(one):
            return cls(first, second, 0, NAN, NAN)
        observed = float((one == other).mean())
        expected = sum(float((one == choice).mean() * (other == choice).mean()) for choice in np.unique(one))
        kappa = (observed - expected) / (1 - expected) if expected < 1 else NAN
        return cls(first, second, len(one), observed, kappa)


def spearman(one: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float:
    """Returns Spearman's rank correlation where both values are known, with mean ranks for ties; NaN if one side is constant."""
    known = ~np.isnan(one) & ~np.isnan(other)
    ranks = [_ranks(values[known]) for values in (one, other)]
    if any(len(np.unique(values)) < 2 for values in ranks):
        return NAN
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def longer_wins(num_bytes: Float[np.ndarray, "N M"], scores: Float[np.ndarray, "N M"]) -> tuple[float, int]:
    """Returns how often the longer of two answers to the same prompt gets the higher score.

    Returns:
        Share of the pairs, with equal scores counted half (NaN without pairs), and the number of pairs of different length.
    """
    wins, pairs = 0.0, 0
    for i, j in itertools.combinations(range(num_bytes.shape[1]), 2):
        longer, higher = num_bytes[:, i] - num_bytes[:, j], scores[:, i] - scores[:, j]
        counted = ~np.isnan(longer) & ~np.isnan(higher) & (longer != 0)
        wins += float((0.5 + 0.5 * np.sign(longer[counted]) * np.sign(higher[counted])).sum())
        pairs += int(counted.sum())
    return (wins / pairs if pairs else NAN), pairs
