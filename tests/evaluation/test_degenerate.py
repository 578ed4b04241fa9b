"""Intervals stay finite and narrow where nothing varies, or only items, seeds or single values do, as on tiny models."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from profuser.evaluation.statistics import NOISE, estimate, paired_difference

SCALES = st.sampled_from([0.0, 1e-150, 1e-17, 1e-9, 1e-3, 1.0, 1e3])
SEEDS = st.integers(1, 4)
NUM_ITEMS = st.integers(1, 40)
CONSTANTS = st.sampled_from([-3.7, 0.0, 0.1, 2.3])


def drawn(seed, num_seeds, num_items, *, constant=0.0, items=0.0, seeds=0.0, single=0.0):
    """Returns values [S, N] that vary between items, seeds and single values with these scales."""
    draw = np.random.default_rng(seed)
    parts = [(items, (1, num_items)), (seeds, (num_seeds, 1)), (single, (num_seeds, num_items))]
    return constant + sum((scale * draw.normal(size=shape) for scale, shape in parts), np.zeros((num_seeds, num_items)))


@st.composite
def compared(draw):
    """Returns two models on the same items and denominators or None: equal, equal but for a few values, or different."""
    num_items, weighted = draw(NUM_ITEMS), draw(st.booleans())
    scales = st.fixed_dictionaries({"constant": CONSTANTS, "items": SCALES, "seeds": SCALES, "single": SCALES})
    mine = drawn(draw(st.integers(0, 9)), draw(SEEDS), num_items, **draw(scales))
    other = drawn(draw(st.integers(0, 9)), draw(SEEDS), num_items, **draw(scales))
    how = draw(st.sampled_from(["same", "few", "shares", "different"]))
    if how in ("same", "few"):
        other = mine.copy()
        other[0, 0] += 0.0 if how == "same" else draw(SCALES)
    if how == "shares":
        mine, other = (mine > 0).astype(float), (other > 0).astype(float)
    weights = np.random.default_rng(num_items).integers(1, 300, num_items).astype(float) if weighted else None
    return (mine, other, weights) if weights is None else (mine * weights, other * weights, weights)


@given(compared())
@example((np.array([[0.1, 0.2], [0.2, 0.1]]),) * 2 + (None,))
@example((np.array([[5.0, 7.0], [7.0, 5.0]]), np.array([[5.0, 7.0], [7.0, 5.0 + 1e-13]]), None))
def test_an_interval_is_finite_contains_the_value_and_is_not_much_wider_than_the_values_range(models):
    mine, other, weights = models
    rates = np.concatenate([mine, other]) / (1.0 if weights is None else weights)
    # With one degree of freedom, t is 12.7. Without denominators the values may be shares, whose intervals are at most 2 wide.
    widest = 30 * np.ptp(rates) + 2.0 * (weights is None) + 1e-9
    for found in (paired_difference(mine, other, denominators=weights), estimate(mine, denominators=weights)):
        assert math.isfinite(found.low)
        assert math.isfinite(found.high)
        assert found.low <= found.value <= found.high
        assert found.high - found.low <= widest
    swapped = -paired_difference(other, mine, denominators=weights)
    there = paired_difference(mine, other, denominators=weights)
    assert 0.0 <= there.p_value <= 1.0
    assert (swapped.low, swapped.high) == pytest.approx((there.low, there.high), rel=1e-6, abs=1e-12)


@given(CONSTANTS, CONSTANTS, SEEDS, SEEDS, st.integers(6, 40))
def test_an_interval_has_no_width_where_nothing_varies(mine, other, num_mine, num_other, num_items):
    weights = np.arange(1.0, num_items + 1)
    first, second = np.full((num_mine, num_items), mine) * weights, np.full((num_other, num_items), other) * weights
    found = paired_difference(first, second, denominators=weights)
    assert (found.low, found.value, found.high) == pytest.approx((mine - other,) * 3, abs=1e-12)
    alone = estimate(first, denominators=weights)
    assert (alone.low, alone.value, alone.high) == pytest.approx((mine,) * 3, abs=1e-12)


@given(SEEDS, SEEDS, st.integers(1, 40), st.integers(0, 9), CONSTANTS)
def test_equal_scores_are_within_noise_whatever_the_numbers_of_seeds(num_mine, num_other, num_items, seed, constant):
    values = drawn(seed, 1, num_items, constant=constant, items=1.0)
    found = paired_difference(np.tile(values, (num_mine, 1)), np.tile(values, (num_other, 1)))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.verdict(larger_is_better=True) == found.verdict(larger_is_better=False) == NOISE


@pytest.mark.parametrize("vanishing", ["items", "seeds", "single"])
@given(
    st.sets(st.sampled_from(["items", "seeds", "single"])),
    st.tuples(SEEDS, SEEDS).filter(lambda seeds: max(seeds) > 1),
    st.integers(6, 40),
    st.integers(0, 9),
    CONSTANTS,
)
def test_an_interval_changes_little_as_a_variance_vanishes(vanishing, present, seeds, num_items, seed, constant):
    def found(scale):
        scales = {name: 1.0 for name in present - {vanishing}} | {vanishing: scale}
        mine = drawn(seed, seeds[0], num_items, constant=constant, **scales)
        other = drawn(seed + 10, seeds[1], num_items, **scales)
        return paired_difference(mine, other)

    limit, near = found(0.0), found(1e-9)
    assert (near.low, near.high) == pytest.approx((limit.low, limit.high), abs=1e-6)
