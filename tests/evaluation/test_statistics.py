"""Intervals have the stated coverage, and tests agree with scipy's."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from profuser.evaluation.statistics import (
    BETTER,
    FEWEST_ITEMS,
    NOISE,
    WORSE,
    estimate,
    holm,
    paired_difference,
    sign_flips,
    sign_test,
    tango,
    wilson,
    win_rate,
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
    found = [paired_difference(*simulated(draw, num_seeds, seed_spread)) for _ in range(300)]
    # Three standard deviations of 300 trials at 95 % are 3.8 points.
    assert 0.912 <= np.mean([d.low <= 0.3 <= d.high for d in found]) <= 0.988


def test_the_spread_between_seeds_widens_the_interval():
    mine = np.array([[0.9] * 40, [0.4] * 40, [0.5] * 40]) + 0.1 * np.random.default_rng(1).normal(size=(3, 40))
    other = np.full(40, 0.5)
    assert paired_difference(mine.mean(axis=0), other).verdict(larger_is_better=True) == BETTER
    assert paired_difference(mine, other).verdict(larger_is_better=True) == NOISE


def test_p_values_are_uniform_without_a_difference():
    draw = np.random.default_rng(3)
    found = [paired_difference(*simulated(draw, 1, 0.0, effect=0.0)).p_value for _ in range(300)]
    assert stats.kstest(found, "uniform").statistic < 0.1


@given(PAIRS, st.integers(1, 3))
def test_identical_models_are_within_noise(pairs, num_seeds):
    values = np.tile(pairs[:, 0], (num_seeds, 1))
    found = paired_difference(values, values)
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.low <= 0 <= found.high
    assert found.verdict(larger_is_better=True) == found.verdict(larger_is_better=False) == NOISE


@given(PAIRS)
def test_swapping_sides_changes_only_the_sign(pairs):
    mine, other = pairs.T
    there, back = (paired_difference(*sides) for sides in ((mine, other), (other, mine)))
    assert (-back).value == pytest.approx(there.value)
    assert ((-back).low, (-back).high) == pytest.approx((there.low, there.high))
    assert back.p_value == there.p_value
    assert there.low <= there.high


def test_bits_per_byte_is_a_ratio_of_sums():
    bits, more, num_bytes = np.array([10.0, 2.0, 30.0]), np.array([12.0, 2.0, 33.0]), np.array([10, 1, 40])
    found = paired_difference(bits, more, denominators=num_bytes)
    assert found.value == pytest.approx(42 / 51 - 47 / 51)
    assert estimate(bits, denominators=num_bytes).value == pytest.approx(42 / 51)
    # A row counted twice counts twice, whatever its length.
    twice = paired_difference(np.tile(bits, 2), np.tile(more, 2), denominators=np.tile(num_bytes, 2))
    assert twice.value == pytest.approx(found.value)


def test_a_verdict_respects_the_direction_and_needs_enough_items():
    lower = paired_difference(np.zeros(20), np.ones(20))
    assert lower.verdict(larger_is_better=False) == BETTER
    assert lower.verdict(larger_is_better=True) == WORSE
    few = FEWEST_ITEMS - 1
    assert paired_difference(np.zeros(few), np.ones(few)).verdict(larger_is_better=False) == NOISE


@pytest.mark.parametrize(
    ("mine", "other", "problem"),
    [([], [], "no items"), ([1.0], [1.0, 2.0], "items"), ([math.nan], [1.0], "not finite")],
)
def test_incomparable_values_are_rejected(mine, other, problem):
    with pytest.raises(ValueError, match=problem):
        paired_difference(mine, other)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_right_and_wrong_answers_have_mcnemars_exact_p_value(only_mine, only_other, both):
    mine, other = ([1] * only_mine + [0] * only_other, [0] * only_mine + [1] * only_other)
    if not (num := only_mine + only_other):
        assert sign_test(0, 0) == 1.0
        return
    found = paired_difference(mine + [1] * both, other + [1] * both)
    assert found.p_value == sign_test(only_other, only_mine) == stats.binomtest(only_mine, num).pvalue
    # Interval and test never contradict each other.
    assert found.p_value < 0.05 or found.low <= 0 <= found.high


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=9).map(lambda lead: np.array(lead, dtype=float)))
def test_few_differences_are_tested_over_all_their_signs(lead):
    decided = lead[lead != 0]
    flips = np.array(list(itertools.product((-1, 1), repeat=len(decided)))) @ decided
    above = np.mean(flips >= lead.sum() - 1e-9 * np.abs(lead).sum())
    below = np.mean(flips <= lead.sum() + 1e-9 * np.abs(lead).sum())
    assert sign_flips(lead) == pytest.approx(min(1.0, 2 * min(above, below)))


@pytest.mark.parametrize(
    ("won", "lost", "ties"), [(5, 1, 54), (5, 0, 55), (0, 5, 995), (6, 1, 13), (1, 0, 19), (0, 0, 60)]
)
def test_a_few_decided_items_among_ties_are_no_verdict(won, lost, ties):
    outcomes = [1.0] * won + [0.0] * lost + [0.5] * ties
    rate, p_value = win_rate(outcomes)
    assert p_value >= 0.05
    assert rate.low <= 0.5 <= rate.high
    assert rate.low < rate.high


def test_tangos_interval_matches_published_values():
    for won, lost, num in [(8, 1, 30), (0, 0, 40), (25, 3, 200), (14, 0, 53)]:
        low, high = tango(won, lost, num)
        assert -1 <= low <= (won - lost) / num <= high <= 1
        assert tango(lost, won, num) == pytest.approx((-high, -low), abs=1e-9)


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
