"""Uncertainty of differences: paired bootstrap over items, spread between seeds, McNemar's test, Holm's correction.

Legend: N items (held-out rows, benchmark questions), S seeds of one arm, R resamples. A value is always
`sum(x) / sum(d)` over items: a mean where the denominators are 1, bits per byte where x is bits and d bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

BETTER, WORSE, NOISE = "better", "worse", "within noise"
FEWEST_ITEMS = 6
"""With fewer items no sign test reaches 5 % (2 * 2**-5 = 0.06), whatever the outcomes: no verdict is given."""
MOST_EXACT = 25
"""Number of discordant pairs from which McNemar's test uses chi-square."""
CHUNK = 1 << 22
"""Numbers held in memory at once while resampling."""


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float
    num_items: int


@dataclass(frozen=True)
class Difference:
    """One model's value minus another's on the same items, with its confidence interval."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided, against no difference; from the same resamples as the interval, and below 5 % if a 95 % interval excludes 0."""
    num_items: int

    def verdict(self, *, larger_is_better: bool) -> str:
        """Returns `better`, `worse`, or `within noise`: the interval includes 0, or there are fewer than FEWEST_ITEMS items."""
        if self.num_items < FEWEST_ITEMS or not (self.low > 0 or self.high < 0):
            return NOISE
        return BETTER if (self.value > 0) == larger_is_better else WORSE

    def __neg__(self) -> "Difference":
        """Returns the difference with the models swapped."""
        return Difference(-self.value, -self.high, -self.low, self.p_value, self.num_items)


def paired_bootstrap(
    mine: Shaped[np.ndarray, "*S N"] | Sequence[float],
    other: Shaped[np.ndarray, "*S2 N"] | Sequence[float],
    *,
    denominators: Shaped[np.ndarray, "N"] | Sequence[float] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Returns the difference of two models' values over the same items, with an interval from resampling the items.

    With one seed each, the interval is the percentile interval (Efron, 1979). With several seeds of either model (rows of a matrix,
    not paired between the models), the interval includes their spread. Resampling two or three seeds would make it far too narrow.
    Instead the variances of items (bootstrap) and of seeds (mean squares, minus the noise of single items) are added, and the
    interval is Student's t with Satterthwaite's degrees of freedom (1946). A model trained once gives no information about
    its spread between seeds.

    Args:
        mine: numerator per item, e.g. 1 for a right answer, or bits of the response.
        other: the same for the other model, items in the same order.
        denominators: denominator per item, the same for both models, e.g. bytes of the response; by default 1.
        num_resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the resampling; the same seed gives the same result.

    Raises:
        ValueError: the numbers of items differ or are 0, or a value is not finite.
    """
    first, second, weight = _checked(mine, other, denominators)
    thetas = [side.sum(axis=1) / weight.sum() for side in (first, second)]
    value = float(thetas[0].mean() - thetas[1].mean())
    draws = _resampled(first.mean(axis=0) - second.mean(axis=0), weight, num_resamples, seed)
    if len(first) == len(second) == 1:
        low, high = (float(bound) for bound in _quantiles(draws, confidence))
        return Difference(value, low, high, _bootstrap_p(draws), weight.size)
    error, freedom = _with_seeds(float(draws.var(ddof=1)), [first, second], weight)
    low, high, p_value = _student(value, error, freedom, confidence)
    return Difference(value, low, high, p_value, weight.size)


def estimate(
    values: Shaped[np.ndarray, "*S N"] | Sequence[float],
    *,
    denominators: Shaped[np.ndarray, "N"] | Sequence[float] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns one model's value with its interval: as in `paired_bootstrap`, or Wilson's (1927) for the share of right answers of
    one seed, since a bootstrap of answers that are all right would claim certainty. Intervals of shares stay between 0 and 1."""
    first, _, weight = _checked(values, values, denominators)
    if denominators is None and len(first) == 1 and np.isin(first, (0, 1)).all():
        return wilson(int(first.sum()), weight.size, confidence)
    zeros = np.zeros(weight.size)
    found = paired_bootstrap(
        first, zeros, denominators=weight, num_resamples=num_resamples, confidence=confidence, seed=seed
    )
    shares = denominators is None and first.min() >= 0 and first.max() <= 1
    low, high = (max(found.low, 0.0), min(found.high, 1.0)) if shares else (found.low, found.high)
    return Estimate(found.value, low, high, found.num_items)


def wilson(num_right: int, num_items: int, confidence: float = 0.95) -> Estimate:
    """Returns a share with Wilson's score interval (JASA 22, 1927)."""
    from scipy.special import ndtri

    z, share = float(ndtri((1 + confidence) / 2)), num_right / num_items
    centre = (share + z**2 / (2 * num_items)) / (1 + z**2 / num_items)
    half = z / (1 + z**2 / num_items) * math.sqrt(share * (1 - share) / num_items + z**2 / (4 * num_items**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), num_items)


def mcnemar(
    mine_correct: Bool[np.ndarray, "N"] | Sequence[bool], other_correct: Bool[np.ndarray, "N"] | Sequence[bool]
) -> float:
    """Returns a two-sided p-value that two models are right equally often, from the items that only one got right (McNemar, 1947).

    Exact binomial below MOST_EXACT such items, else chi-square with Edwards's correction, `(|b - c| - 1)^2 / (b + c)`.
    """
    mine, other = np.asarray(mine_correct, dtype=bool), np.asarray(other_correct, dtype=bool)
    if mine.shape != other.shape:
        raise ValueError(f"{mine.size} and {other.size} items: both models must have answered the same items")
    only_mine, only_other = int((mine & ~other).sum()), int((other & ~mine).sum())
    num = only_mine + only_other
    if num < MOST_EXACT:
        tail = sum(math.comb(num, k) for k in range(min(only_mine, only_other) + 1)) / 2**num
        return min(1.0, 2 * tail)
    chi_square = max(0, abs(only_mine - only_other) - 1) ** 2 / num
    return math.erfc(math.sqrt(chi_square / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted so that an error in any comparison is as rare as in one (Holm, 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    out, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = largest
    return out


def resamples(num_items: int, num_resamples: int, seed: int) -> Iterator[Float[np.ndarray, "R N"]]:
    """Yields how often each item is drawn in each resample, in chunks of resamples."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // num_items)
    for start in range(0, num_resamples, step):
        num = min(step, num_resamples - start)
        drawn = generator.integers(num_items, size=(num, num_items)) + num_items * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_items)
        yield counts.reshape(num, num_items).astype(np.float64)


def _checked(mine: object, other: object, denominators: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns both as [S, N] float64, and the denominators."""
    first, second = (np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (mine, other))
    num = first.shape[1]
    weight = np.ones(num) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if second.shape[1] != num or weight.shape != (num,):
        raise ValueError(f"{num}, {second.shape[1]} and {weight.size} items: both models must have the same items")
    if not num:
        raise ValueError("no items to compare on")
    if not all(np.isfinite(array).all() for array in (first, second, weight)) or not weight.sum() > 0:
        raise ValueError("a value is not finite, or the denominators are all 0")
    return first, second, weight


def _resampled(
    numerators: Float[np.ndarray, "N"], denominators: Float[np.ndarray, "N"], num_resamples: int, seed: int
) -> Float[np.ndarray, "R"]:
    """Returns `sum(x) / sum(d)` of every resample."""
    both = np.stack([numerators, denominators], axis=1)
    sums = np.concatenate([counts @ both for counts in resamples(len(numerators), num_resamples, seed)])
    return sums[:, 0] / sums[:, 1]


def _quantiles(draws: Float[np.ndarray, "R"], confidence: float) -> Float[np.ndarray, "2"]:
    return np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])


def _bootstrap_p(draws: Float[np.ndarray, "R"]) -> float:
    """Returns twice the smaller share of resamples on either side of 0, with one resample added (Davison and Hinkley, 1997)."""
    fewer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (draws.size + 1))


def _with_seeds(
    item_variance: float, sides: Sequence[Float[np.ndarray, "_ N"]], weight: Float[np.ndarray, "N"]
) -> tuple[float, float]:
    """Returns a difference's standard error, including the spread between seeds, and Satterthwaite's degrees of freedom.

    Items and seeds are crossed: Var = items + seeds - residual, each a mean square over the number of cells.
    """
    num = weight.size
    variance, squares = item_variance, item_variance**2 / max(num - 1, 1)
    for side in sides:
        num_seeds = len(side)
        if num_seeds == 1:
            continue
        theta = side.sum(axis=1) / weight.sum()
        between = float(theta.var(ddof=1)) / num_seeds
        rest = side - side.mean(axis=0) - (theta - theta.mean())[:, None] * weight
        freedom = (num_seeds - 1) * max(num - 1, 1)
        residual = float((rest**2).sum()) / freedom * num / (num_seeds * weight.sum() ** 2)
        variance += max(between - residual, 0.0)
        squares += between**2 / (num_seeds - 1) + residual**2 / freedom
    return math.sqrt(variance), variance**2 / squares if squares else math.inf


def _student(value: float, error: float, freedom: float, confidence: float) -> tuple[float, float, float]:
    """Returns the interval and the two-sided p-value."""
    from scipy.special import stdtr, stdtrit

    if error == 0:
        return value, value, 1.0 if value == 0 else 0.0
    freedom = min(freedom, 1e9)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return value - half, value + half, float(2 * stdtr(freedom, -abs(value) / error))
