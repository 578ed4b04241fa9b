"""Uncertainty of differences between paired items: intervals, exact tests, the spread between seeds, Holm's correction.

Legend: N items (held-out rows, benchmark questions), S seeds of one arm. A value is always `sum(x) / sum(d)` over items: a mean
where the denominators are 1, bits per byte where x is bits and d bytes. An item is *decided* if the two models differ on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

BETTER, WORSE, NOISE = "better", "worse", "within noise"
FEWEST_ITEMS = 6
"""With fewer items no sign test reaches 5 % (2 * 2**-5 = 0.06), whatever the outcomes: no verdict is given."""
FEW_DECIDED = 25
"""Number of decided items from which Student's t is used where outcomes are not just won, tied or lost."""
NUM_FLIPS = 9999
"""Sign flips drawn if there are more than this many in all."""
SIGN_TEST, SIGN_FLIPS, STUDENT = "sign test", "sign flips", "Student's t"
ROUNDING = 1e-14
"""Largest difference between two means, relative to their size, that is taken for rounding."""
LEVEL = 0.95
"""Confidence level of all intervals."""


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
    """Two-sided, against no difference; at least 5 % if the interval includes 0."""
    num_items: int
    test: str
    """Source of the p-value: `sign test` (exact; McNemar's where answers are right or wrong), `sign flips` or `Student's t`."""

    def verdict(self, *, larger_is_better: bool) -> str:
        """Returns `better`, `worse`, or `within noise`: the interval includes 0, or there are fewer than FEWEST_ITEMS items."""
        if self.num_items < FEWEST_ITEMS or not (self.low > 0 or self.high < 0):
            return NOISE
        return BETTER if (self.value > 0) == larger_is_better else WORSE

    def __neg__(self) -> "Difference":
        """Returns the difference with the models swapped."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    def times(self, unit: float) -> "Difference":
        """Returns the difference in another unit, e.g. 100 for percentage points from shares; `unit` is positive."""
        return replace(self, value=unit * self.value, low=unit * self.low, high=unit * self.high)


def paired_difference(
    mine: Shaped[np.ndarray, "*S N"] | Sequence[float],
    other: Shaped[np.ndarray, "*S2 N"] | Sequence[float],
    *,
    denominators: Shaped[np.ndarray, "N"] | Sequence[float] | None = None,
) -> Difference:
    """Returns the difference of two models' values over the same items, with its 95 % interval and an exact test.

    One seed each, and every item won, tied or lost by 1 (right or wrong answers, preferences): Tango's score interval for paired
    shares (Statistics in Medicine 17, 1998) and the exact sign test, which is McNemar's. Other values: Student's t on the
    linearised differences `x - value * d`, with one degree of freedom fewer than decided items; below FEW_DECIDED of them the
    p-value is that of sign flips. An interval whose test does not reject is extended to 0, so that both always agree.
    `tests/evaluation/test_coverage.py` measures how often the intervals cover the truth.

    With several seeds of either model (rows of a matrix, not paired between the models), the interval includes their spread: the
    variances of items and of seeds (mean squares, minus the noise of single items) are added, and the interval is Student's t with
    Satterthwaite's degrees of freedom (1946). A model trained once gives no information about its spread between seeds. Where
    neither items nor seeds vary the interval is the value alone.

    Args:
        mine: numerator per item, e.g. 1 for a right answer, or bits of the response.
        other: the same for the other model, items in the same order.
        denominators: denominator per item, the same for both models, e.g. bytes of the response; by default 1.

    Raises:
        ValueError: the numbers of items differ or are 0, or a value is not finite.
    """
    first, second, weight = _checked(mine, other, denominators)
    lead = _lead(first, second)
    value = float(lead.sum() / weight.sum())
    one_seed = len(first) == len(second) == 1
    if one_seed and denominators is None and np.isin(lead, (-1, 0, 1)).all():
        won, lost = int((lead > 0).sum()), int((lead < 0).sum())
        return _agreeing(value, *tango(won, lost, weight.size), sign_test(won, lost), weight.size, SIGN_TEST)
    num_decided = int((lead != 0).sum())
    error, freedom = _standard_error(lead, weight), max(num_decided - 1, 1)
    if not one_seed:
        return Difference(
            value, *_student(value, *_with_seeds(error**2, freedom, [first, second], weight)), weight.size, STUDENT
        )
    low, high, p_value = _student(value, error, freedom)
    if num_decided >= FEW_DECIDED:
        return Difference(value, low, high, p_value, weight.size, STUDENT)
    return _agreeing(value, low, high, sign_flips(lead), weight.size, SIGN_FLIPS)


def estimate(
    values: Shaped[np.ndarray, "*S N"] | Sequence[float],
    *,
    denominators: Shaped[np.ndarray, "N"] | Sequence[float] | None = None,
) -> Estimate:
    """Returns one model's value with its interval: as in `paired_difference`, or Wilson's (1927) for the share of right answers of
    one seed. Intervals of shares stay between 0 and 1."""
    first, _, weight = _checked(values, values, denominators)
    if denominators is None and len(first) == 1 and np.isin(first, (0, 1)).all():
        return wilson(int(first.sum()), weight.size)
    error, freedom = _standard_error(first.mean(axis=0), weight), max(weight.size - 1, 1)
    if len(first) > 1:
        error, freedom = _with_seeds(error**2, freedom, [first], weight)
    value = float(first.mean(axis=0).sum() / weight.sum())
    low, high, _ = _student(value, error, freedom)
    if denominators is None and first.min() >= 0 and first.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(value, low, high, weight.size)


def win_rate(won: Shaped[np.ndarray, "N"] | Sequence[float]) -> tuple[Estimate, float]:
    """Returns the share of items won, ties counted half, and the exact sign test's p-value against 50 %.

    Args:
        won: 1 for an item won, 0.5 for a tie, 0 for an item lost.
    """
    outcome = np.asarray(won, dtype=np.float64)
    lead = paired_difference(outcome, 1 - outcome)
    return Estimate((1 + lead.value) / 2, (1 + lead.low) / 2, (1 + lead.high) / 2, lead.num_items), lead.p_value


def wilson(num_right: int, num_items: int) -> Estimate:
    """Returns a share with Wilson's score interval (JASA 22, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(num_right, num_items).proportion_ci(LEVEL, method="wilson")
    return Estimate(num_right / num_items, max(0.0, float(found.low)), min(1.0, float(found.high)), num_items)


def tango(num_won: int, num_lost: int, num_items: int) -> tuple[float, float]:
    """Returns the 95 % score interval of `(won - lost) / items` (Tango, Statistics in Medicine 17, 1998); the rest are ties.

    Its ends are the differences t at which `(won - lost - n t) / sqrt(n (2 q + t (1 - t)))` is plus or minus 1.96, with q the
    probability of a loss that is most likely given t.
    """
    from scipy.optimize import root_scalar
    from scipy.special import ndtri

    limit, lead = float(ndtri((1 + LEVEL) / 2)), num_won - num_lost

    def score(t: float) -> float:
        a, b, c = 2 * num_items, (2 * num_items - lead) * t - num_won - num_lost, -num_lost * t * (1 - t)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = num_items * (2 * q + t * (1 - t))
        gap = lead - num_items * t
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(1e9, gap) if gap else 0.0

    value, edge = lead / num_items, 1 - 1e-12
    low = -1.0 if value == -1 else root_scalar(lambda t: score(t) - limit, bracket=(-edge, value)).root
    high = 1.0 if value == 1 else root_scalar(lambda t: score(t) + limit, bracket=(value, edge)).root
    return float(low), float(high)


def sign_test(num_won: int, num_lost: int) -> float:
    """Returns the exact two-sided p-value that wins and losses are equally likely; ties do not count. On right and wrong answers
    this is McNemar's exact test."""
    from scipy.stats import binomtest

    return float(binomtest(num_won, num_won + num_lost).pvalue) if num_won + num_lost else 1.0


def sign_flips(lead: Float[np.ndarray, "N"]) -> float:
    """Returns the two-sided p-value that each difference is as likely to be negative as positive: exact over all sign flips of
    those that are not 0, or over NUM_FLIPS random ones if there are more."""
    from scipy.stats import permutation_test

    decided = lead[lead != 0]
    if len(decided) < 2:
        return 1.0
    options = {"permutation_type": "samples", "n_resamples": NUM_FLIPS, "rng": np.random.default_rng(0)}
    return float(permutation_test((decided,), np.sum, vectorized=True, **options).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted so that an error in any comparison is as rare as in one (Holm, 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    out, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = largest
    return out


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


def _lead(first: Float[np.ndarray, "_ N"], second: Float[np.ndarray, "_ N"]) -> Float[np.ndarray, "N"]:
    """Returns the difference of each item's means over seeds; 0 where it is only the rounding of the means."""
    mine, other = first.mean(axis=0), second.mean(axis=0)
    size = np.abs(first).mean(axis=0) + np.abs(second).mean(axis=0)
    return np.where(np.abs(mine - other) <= ROUNDING * size, 0.0, mine - other)


def _agreeing(value: float, low: float, high: float, p_value: float, num_items: int, test: str) -> Difference:
    """Returns a difference whose interval includes 0 if its test does not reject at the same level."""
    if p_value >= 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(value, low, high, p_value, num_items, test)


def _standard_error(numerators: Float[np.ndarray, "N"], weight: Float[np.ndarray, "N"]) -> float:
    """Returns the standard error of `sum(x) / sum(d)` over items, by linearisation (Cochran, 1977, ch. 6)."""
    num = weight.size
    rest = numerators - numerators.sum() / weight.sum() * weight
    return math.sqrt(float((rest**2).sum()) * num / max(num - 1, 1)) / float(weight.sum())


def _with_seeds(
    item_variance: float,
    item_freedom: float,
    sides: Sequence[Float[np.ndarray, "_ N"]],
    weight: Float[np.ndarray, "N"],
) -> tuple[float, float]:
    """Returns a value's standard error, including the spread between seeds, and Satterthwaite's degrees of freedom.

    Items and seeds are crossed: Var = items + seeds - residual, each a mean square over the number of cells. No component is
    negative: items count at least as much as the residuals that they contain, seeds at least 0. Satterthwaite's formula holds for
    sums. With a mean square subtracted it may give less than 1, which no mean square has: 1 is used then.
    """
    num = weight.size
    noise, seeds, squares = 0.0, 0.0, item_variance**2 / item_freedom
    for side in sides:
        num_seeds = len(side)
        if num_seeds == 1:
            continue
        theta = side.sum(axis=1) / weight.sum()
        between = float(theta.var(ddof=1)) / num_seeds
        rest = side - side.mean(axis=0) - (theta - theta.mean())[:, None] * weight
        freedom = (num_seeds - 1) * max(num - 1, 1)
        residual = float((rest**2).sum()) / freedom * num / (num_seeds * weight.sum() ** 2)
        noise += residual
        seeds += max(between - residual, 0.0)
        squares += between**2 / (num_seeds - 1) + residual**2 / freedom
    variance = max(item_variance, noise) + seeds
    return math.sqrt(variance), max(variance**2 / squares, 1.0) if squares else math.inf


def _student(value: float, error: float, freedom: float) -> tuple[float, float, float]:
    """Returns the interval and the two-sided p-value."""
    from scipy.special import stdtr, stdtrit

    if error == 0:
        return value, value, 1.0 if value == 0 else 0.0
    freedom = min(freedom, 1e9)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return value - half, value + half, float(2 * stdtr(freedom, -abs(value) / error))
