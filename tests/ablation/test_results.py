"""Arms are compared on the same rows, with the tests and intervals of their metric's values."""

import numpy as np
import pytest
from scipy.stats import binomtest

from profuser.ablation.results import Measured, compare_all
from profuser.evaluation.statistics import NOISE
from profuser.report.measures import BITS_PER_BYTE, EXACT_MATCH, METRICS

NUM_ROWS = 40


def arm(name, bits, correct):
    seeds = len(bits)
    return Measured(name, "schedule", bits, correct, updates=(10,) * seeds, tokens=(1000,) * seeds)


@pytest.mark.parametrize("change", [0.0, 1e-13, 1e-6, 1e-3])
@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_an_arm_with_the_scores_of_progressive_is_within_noise_and_its_interval_is_readable(num_seeds, change):
    draw = np.random.default_rng(0)
    bits, correct = draw.gamma(2, 40, (num_seeds, NUM_ROWS)), draw.random((num_seeds, NUM_ROWS)) < 0.4
    rows = [arm("progressive", bits, correct), arm("k-1", bits + change * draw.normal(size=bits.shape), correct)]
    found = compare_all(rows, np.full(NUM_ROWS, 80))
    for metric in METRICS:
        difference = found[metric.name, "k-1", "progressive"]
        assert difference is not None
        assert difference.verdict == NOISE
        assert difference.low <= difference.difference <= difference.high
        assert len(difference.text(metric)) <= len("-00.000 [-00.000, +00.000] ") + len(NOISE)


def test_right_and_wrong_answers_of_one_seed_have_mcnemars_test_in_percentage_points():
    draw, bits = np.random.default_rng(1), np.ones((1, NUM_ROWS))
    mine, other = draw.random((1, NUM_ROWS)) < 0.7, draw.random((1, NUM_ROWS)) < 0.4
    found = compare_all([arm("progressive", bits, other), arm("k-1", bits, mine)], np.full(NUM_ROWS, 8))
    difference, bits_difference = (found[metric.name, "k-1", "progressive"] for metric in (EXACT_MATCH, BITS_PER_BYTE))
    assert difference is not None
    assert bits_difference is not None
    won, lost = int((mine & ~other).sum()), int((other & ~mine).sum())
    assert difference.p_value == pytest.approx(binomtest(won, won + lost).pvalue)
    assert difference.difference == pytest.approx(100 * (won - lost) / NUM_ROWS)
    assert -100 <= difference.low < difference.difference < difference.high <= 100
    assert bits_difference.difference == 0.0
