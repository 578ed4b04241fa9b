"""Intervals have the stated coverage, and tests agree with scipy's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from profuser.evaluation.statistics import (
    BETTER,
    FEWEST_ITEMS,
    MOST_EXACT,
    NOISE,
    WORSE,
    estimate,
    holm,
    mcnemar,
    paired_bootstrap,
    wilson,
)

FINITE = st.floats(-100, 100, allow_nan=False)
PAIRS = st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=30).map(np.array)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def simulated(draw, num_seeds, seed_spread, num_items=80, effect=0.3):
    """Draws two models on the same items, which are hard or easy for both; `num_seeds` of mine, and one of the other."""
    item = draw.normal(size=num_items)
    seeds = seed_spread * draw.normal(size=(num_seeds, 1))
    mine = effect + item + seeds + 0.5 * draw.normal(size=(num_seeds, num_items))
    return mine, item + 0.5 * draw.normal(size=num_items)


@pytest.mark.parametrize(("num_seeds", "seed_spread"), [(1, 0.0), (3, 0.0), (3, 0.4), (5, 0.4)])
def test_an_interval_covers_the_truth_as_often_as_stated(num_seeds, seed_spread):
    draw = np.random.default_rng(0)
    found = [
        paired_bootstrap(*simulated(draw, num_seeds, seed_spread), num_resamples=300, seed=trial)
        for trial in range(300)
    ]
    # Three standard deviations of 300 trials at 95 % are 3.8 points.
    assert 0.912 <= np.mean([d.low <= 0.3 <= d.high for d in found]) <= 0.988


def test_the_spread_between_seeds_widens_the_interval():
    mine = np.array([[0.9] * 40, [0.4] * 40, [0.5] * 40]) + 0.1 * np.random.default_rng(1).normal(size=(3, 40))
    other = np.full(40, 0.5)
    assert paired_bootstrap(mine.mean(axis=0), other).verdict(larger_is_better=True) == BETTER
    assert paired_bootstrap(mine, other).verdict(larger_is_better=True) == NOISE


def test_p_values_are_uniform_without_a_difference():
    draw = np.random.default_rng(3)
    found = [
        paired_bootstrap(*simulated(draw, 1, 0.0, effect=0.0), num_resamples=300, seed=n).p_value for n in range(300)
    ]
    assert stats.kstest(found, "uniform").statistic < 0.1


@given(PAIRS, st.integers(1, 3))
def test_identical_models_are_within_noise(pairs, num_seeds):
    values = np.tile(pairs[:, 0], (num_seeds, 1))
    found = paired_bootstrap(values, values, num_resamples=50)
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.low <= 0 <= found.high
    assert found.verdict(larger_is_better=True) == found.verdict(larger_is_better=False) == NOISE


@given(PAIRS)
def test_swapping_sides_changes_only_the_sign(pairs):
    mine, other = pairs.T
    there, back = (paired_bootstrap(*sides, num_resamples=60) for sides in ((mine, other), (other, mine)))
    assert (-back).value == pytest.approx(there.value)
    assert ((-back).low, (-back).high) == pytest.approx((there.low, there.high))
    assert back.p_value == there.p_value
    assert there.low <= there.high


@given(PAIRS, st.integers(0, 5))
def test_the_same_seed_gives_the_same_result(pairs, seed):
    mine, other = pairs.T
    once, again = (paired_bootstrap(mine, other, num_resamples=40, seed=seed) for _ in range(2))
    assert once == again


def test_bits_per_byte_is_a_ratio_of_sums():
    bits, more, num_bytes = np.array([10.0, 2.0, 30.0]), np.array([12.0, 2.0, 33.0]), np.array([10, 1, 40])
    found = paired_bootstrap(bits, more, denominators=num_bytes)
    assert found.value == pytest.approx(42 / 51 - 47 / 51)
    assert estimate(bits, denominators=num_bytes).value == pytest.approx(42 / 51)
    # A row counted twice counts twice, whatever its length.
    twice = paired_bootstrap(np.tile(bits, 2), np.tile(more, 2), denominators=np.tile(num_bytes, 2))
    assert twice.value == pytest.approx(found.value)


def test_a_verdict_respects_the_direction_and_needs_enough_items():
    lower = paired_bootstrap(np.zeros(20), np.ones(20))
    assert lower.verdict(larger_is_better=False) == BETTER
    assert lower.verdict(larger_is_better=True) == WORSE
    few = FEWEST_ITEMS - 1
    assert paired_bootstrap(np.zeros(few), np.ones(few)).verdict(larger_is_better=False) == NOISE


def test_resampling_in_chunks_has_the_same_distribution(monkeypatch):
    mine, other = np.random.default_rng(4).normal(size=(2, 50))
    whole = paired_bootstrap(mine, other)
    monkeypatch.setattr("profuser.evaluation.statistics.CHUNK", 170)
    pieces = paired_bootstrap(mine, other)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=0.05)


@pytest.mark.parametrize(
    ("mine", "other", "problem"),
    [([], [], "no items"), ([1.0], [1.0, 2.0], "items"), ([math.nan], [1.0], "not finite")],
)
def test_incomparable_values_are_rejected(mine, other, problem):
    with pytest.raises(ValueError, match=problem):
        paired_bootstrap(mine, other)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_agrees_with_scipy(only_mine, only_other, both):
    mine = np.array([True] * only_mine + [False] * only_other + [True] * both, dtype=bool)
    other = np.array([False] * only_mine + [True] * only_other + [True] * both, dtype=bool)
    found, num = mcnemar(mine, other), only_mine + only_other
    assert found == pytest.approx(mcnemar(other, mine))
    if num == 0:
        assert found == 1.0
    elif num < MOST_EXACT:
        assert found == pytest.approx(stats.binomtest(only_mine, num).pvalue)
    else:
        assert found == pytest.approx(stats.chi2.sf(max(0, abs(only_mine - only_other) - 1) ** 2 / num, 1))
        assert found == pytest.approx(stats.binomtest(only_mine, num).pvalue, abs=0.003)


@given(P_VALUES)
def test_holm_only_raises_p_values_keeps_their_order_and_is_below_bonferroni(p_values):
    found = holm(p_values)
    assert all(p <= adjusted <= min(1, len(p_values) * p) for p, adjusted in zip(p_values, found, strict=True))
    by_p = [found[index] for index in np.argsort(p_values, kind="stable")]
    assert by_p == sorted(by_p)


def test_holm_matches_its_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.integers(1, 200).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_a_share_has_wilsons_interval(right):
    num_right, num_items = right
    wanted = stats.binomtest(num_right, num_items).proportion_ci(method="wilson")
    found = wilson(num_right, num_items)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    values = np.arange(num_items) < num_right
    assert estimate(values) == found


def test_intervals_of_shares_over_several_seeds_stay_between_0_and_1():
    found = estimate(np.array([[0.0] * 30 + [1.0] * 2, [0.0] * 22 + [1.0] * 10]))
    assert found.value == pytest.approx(12 / 64)
    assert 0.0 == found.low < found.value < found.high <= 1.0
