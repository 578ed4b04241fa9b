"""Agreement and length bias, compared with textbook examples and slow reference code."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from profuser.rewards.agreement import Agreement, longer_wins, spearman


def compare(one, other):
    return Agreement.of("a", "b", np.array(one), np.array(other))


def test_kappa_equals_the_textbook_example():
    # Cohen's fifty grant proposals: both yes 20, both no 15, only the first yes 5, only the second yes 10.
    one, other = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = compare(one, other)
    assert (found.num_rows, found.share) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)


def test_abstentions_are_not_counted():
    found = compare([0, 1, -1, 2, -1], [0, 2, 1, -1, -1])
    assert (found.num_rows, found.share) == (2, 0.5)


def test_kappa_is_nan_where_chance_always_agrees():
    assert math.isnan(compare([1, 1], [1, 1]).kappa)
    assert compare([1, 1], [1, 1]).share == 1
    assert math.isnan(compare([-1], [0]).share)


def test_full_disagreement_is_below_chance():
    assert compare([0, 1, 0, 1], [1, 0, 1, 0]).kappa == pytest.approx(-1)


def slow_spearman(one, other):
    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    x, y = (np.array(ranks(values)) for values in (one, other))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())


@given(arrays.arrays(np.float64, (2, 9), elements=st.integers(-4, 4)))
def test_spearman_equals_slow_reference_code(values):
    one, other = values
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(slow_spearman(one.tolist(), other.tolist()), abs=1e-12)


def test_spearman_ignores_missing_values():
    assert spearman(np.array([1, 2, np.nan, 3.0]), np.array([10, 20, 0, 30.0])) == pytest.approx(1)


def test_longer_wins_counts_pairs_of_different_length():
    num_bytes = np.array([[1, 2, 3.0], [5, 5, np.nan], [4, 8, np.nan]])
    scores = np.array([[0, 1, 0.5], [1, 2, np.nan], [3, 3, np.nan]])
    # Row 1: 2 beats 1, 3 beats 1, 3 loses to 2. Row 2 has no pair of different length. Row 3: equal scores, half.
    assert longer_wins(num_bytes, scores) == (2.5 / 4, 4)
    share, pairs = longer_wins(num_bytes[1:2], scores[1:2])
    assert math.isnan(share)
    assert pairs == 0
