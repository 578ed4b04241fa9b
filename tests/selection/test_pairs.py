"""Pairs of a better and a worse answer: what makes one, by an oracle over all pairs, and what becomes of it in the examples."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.artifacts.schemas import PAIR
from profuser.recipe.selecting import PreferenceConfig
from profuser.selection.pairs import choose_pair, mean_rewards
from tests.selection.shard import composing, select

SAMPLES = 3
NAN = float("nan")
answers = st.lists(st.sampled_from([None, " ", "a", "bb", "cccc", "dddddddd"]), min_size=6, max_size=6)
numbers = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 2.0, NAN]), min_size=6, max_size=6)


def pair(texts, votes, means, rejected=(False,) * 6, **settings):
    given_ = (np.array(votes, dtype=float), np.array(means, dtype=float), np.array(rejected))
    return choose_pair(texts, *given_, SAMPLES, PreferenceConfig(**settings))


@given(
    answers,
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    numbers,
    st.lists(st.booleans(), min_size=6, max_size=6),
)
@pytest.mark.parametrize(
    "settings", [{}, {"within": "row"}, {"within": "row", "margin": 0.5, "length_ratio": 2}], ids=str
)
def test_a_pair_is_the_best_answer_and_the_worst_that_may_go_with_it(settings, texts, votes, means, rejected):
    config = PreferenceConfig(**settings)
    usable = [i for i in range(6) if texts[i] and texts[i].strip() and not np.isnan(means[i])]
    best = [i for i in usable if not rejected[i]]
    best = [i for i in best if all((votes[i], means[i]) >= (votes[j], means[j]) for j in best)]
    fitting = [
        (i, j)
        for i, j in itertools.product(best[:1], usable)
        if texts[i] != texts[j]
        and (config.within == "row" or i // SAMPLES == j // SAMPLES)
        and max(len(texts[i]), len(texts[j])) <= (config.length_ratio or np.inf) * min(len(texts[i]), len(texts[j]))
    ]
    found = pair(texts, votes, means, rejected, **settings)
    lowest = min((means[j] for _, j in fitting), default=None)
    if lowest is None or means[best[0]] - lowest <= config.margin:
        assert found is None
    else:
        assert found in fitting
        assert means[found[1]] == lowest


def test_the_mean_reward_counts_only_what_judged_the_answer():
    standard = np.array([[1.0, 3.0, 9.0], [NAN, 2.0, 9.0], [NAN, NAN, 9.0]])
    found = mean_rewards(standard, np.array([3.0, 1.0, 0.0]))
    np.testing.assert_equal(found, [1.5, 2.0, NAN])


def test_the_answers_of_a_pair_are_examples_without_distributions():
    given_ = {"scores": ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), "other": ("It is 8.", "It is 9.", "No.")}
    table, counts = select(preference={"within": "row"}, **given_)
    rows = [row for row in table.to_pylist() if row["mode"] in PAIR]
    assert [(row["row_id"], row["mode"], row["teacher"]) for row in rows] == [
        ("0", "preferred", "lossy"),
        ("0", "rejected", "plain"),
        ("1", "preferred", "plain"),
        ("1", "rejected", "lossy"),
    ]
    assert all(set(row["rules"]) == {0} and len(row["rules"]) == len(row["response_ids"]) for row in rows)
    assert (counts["preference_pairs"], counts["rows_without_pair"]) == (2, 1)
    usual, before = select(**given_)
    modes = [row for row in table.to_pylist() if row["mode"] not in PAIR]
    assert str(modes) == str(usual.to_pylist())
    assert {name: value for name, value in counts.items() if "pair" not in name} == before


def test_a_pair_of_which_the_target_misspells_one_answer_is_left_out_and_counted():
    scores = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    settings = {"preference": {"within": "row"}, "scores": scores, "other": ("It is 8.", "It is 9.", "cafe\u0301")}
    usual, counts = select(**settings)
    table, fewer = select(tokenizer=composing(), **settings)
    assert counts["preference_pairs"] == 3
    assert (fewer["preference_pairs"], fewer["pairs_left_out"]) == (2, 1)
    assert [row["row_id"] for row in table.to_pylist() if row["mode"] in PAIR] == ["0", "0", "1", "1"]
    assert usual.num_rows - table.num_rows >= 2
