"""Intervals cover the truth as often as they claim, and false verdicts are as rare, at few and many rows with few and many ties."""

import numpy as np
import pytest
from scipy.special import expit

from profuser.evaluation.judged import length_controlled
from profuser.evaluation.statistics import Difference, paired_difference, win_rate

SIZES, TIES, SHARES = (20, 60, 200, 1000), (0.0, 0.5, 0.8, 0.95), (0.5, 0.8)
TRIALS = 500
CLAIMED = 0.95
SLACK = 3 * (CLAIMED * (1 - CLAIMED) / TRIALS) ** 0.5
"""Three standard deviations of the share of trials."""


@pytest.mark.parametrize("num_items", SIZES)
@pytest.mark.parametrize("ties", TIES)
def test_win_rates_cover_and_false_verdicts_are_rare(num_items, ties):
    draw, seen = np.random.default_rng([num_items, int(100 * ties)]), {}
    for share in SHARES:
        decided = [(1 - ties) * share, (1 - ties) * (1 - share)]
        truth, held, false = decided[0] + ties / 2, 0, 0
        for won, lost, tied in draw.multinomial(num_items, [*decided, ties], size=TRIALS).tolist():
            if (won, lost) not in seen:
                seen[won, lost] = win_rate([1.0] * won + [0.0] * lost + [0.5] * tied)
            rate, p_value = seen[won, lost]
            held += rate.low - 1e-9 <= truth <= rate.high + 1e-9
            false += p_value < 0.05
        assert held / TRIALS >= CLAIMED - SLACK
        if share == 0.5:
            assert false / TRIALS <= 1 - CLAIMED + SLACK


@pytest.mark.parametrize("num_items", SIZES)
@pytest.mark.parametrize("ties", TIES)
def test_differences_of_any_size_cover_where_enough_items_are_decided(num_items, ties):
    """Bits per byte, probabilities: with ties (equal values) and items of unequal length."""
    draw, held, false, trials = np.random.default_rng([num_items, int(100 * ties)]), [0, 0], 0, 300
    for effect in (0, 1):
        for _ in range(trials):
            length = draw.uniform(50, 500, num_items)
            lead = length * (0.3 * effect + draw.normal(size=num_items)) * (draw.random(num_items) >= ties)
            found = paired_difference(lead, np.zeros(num_items), denominators=length)
            held[effect] += found.low <= 0.3 * effect * (1 - ties) <= found.high
            false += (not effect) and found.verdict(larger_is_better=True) != "within noise"
    slack = 3 * (CLAIMED * (1 - CLAIMED) / trials) ** 0.5
    assert false / trials <= 1 - CLAIMED + slack
    if (1 - ties) * num_items >= 10:
        assert min(held) / trials >= CLAIMED - slack


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.4])
def test_differences_of_arms_with_seeds_each_cover(num_seeds, seed_spread):
    draw, held, trials, num_items = np.random.default_rng([num_seeds, int(100 * seed_spread)]), 0, 300, 80
    for _ in range(trials):
        item = draw.normal(size=num_items)
        arms = [
            item + seed_spread * draw.normal(size=(num_seeds, 1)) + 0.5 * draw.normal(size=(num_seeds, num_items))
            for _ in range(2)
        ]
        found = paired_difference(arms[0] + 0.3, arms[1])
        held += found.low <= 0.3 <= found.high
    assert held / trials >= CLAIMED - 3 * (CLAIMED * (1 - CLAIMED) / trials) ** 0.5


@pytest.mark.parametrize("num_items", SIZES)
@pytest.mark.parametrize("ties", TIES)
def test_rates_at_equal_length_cover_and_false_verdicts_are_rare(num_items, ties):
    draw, trials, found = np.random.default_rng([num_items, int(100 * ties)]), 200, []
    for _ in range(trials):
        longer_by = draw.normal(5, 10, num_items)
        won = draw.random(num_items) < expit(np.tanh(longer_by / longer_by.std()))
        rate = length_controlled(np.where(draw.random(num_items) < ties, 0.5, won), longer_by)
        found.append(Difference(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5, 0.0, num_items, ""))
    slack = 3 * (CLAIMED * (1 - CLAIMED) / trials) ** 0.5
    # At equal length neither model is preferred here: the true rate is one half, whatever the ties.
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= CLAIMED - slack
    assert np.mean([one.verdict(larger_is_better=True) != "within noise" for one in found]) <= 1 - CLAIMED + slack
