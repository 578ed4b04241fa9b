"""Votes: majority, ties, abstention, identical answers."""

import numpy as np
import pytest

from profuser.recipe.rewards import VoteConfig
from profuser.rewards.verifiers import exact_match, final_answer
from profuser.rewards.voting import RewardScale, vote

ONE = [RewardScale(0.0, 1.0)] * 3


def scores(*rows):
    """`[M][R]` of one row, as `[1, M, R]`."""
    return np.array([rows], dtype=float)


def test_the_answer_with_most_votes_wins():
    result = vote(scores([1, 0, 9], [2, 5, 1], [0, 1, 2]), [["a", "b", "c"]], ONE, VoteConfig())
    assert result.winner.tolist() == [1]
    assert result.votes.tolist() == [[1, 2, 0]]
    assert result.choices.tolist() == [[1, 1, 0]]


def test_a_tie_goes_to_the_highest_mean_standardised_reward():
    scales = [RewardScale(0.0, 1.0), RewardScale(100.0, 50.0)]
    result = vote(scores([3, 90], [0, 110]), [["a", "b"]], scales, VoteConfig())
    assert result.votes.tolist() == [[1, 1]]
    assert result.winner.tolist() == [0]  # 3 and -0.2 against 0 and 0.2
    skipped = vote(scores([3, 90], [0, 110]), [["a", "b"]], scales, VoteConfig(no_majority="skip"))
    assert skipped.winner.tolist() == [-1]


def test_identical_answers_are_one_candidate():
    result = vote(scores([1, 1, 1], [1, 1, 1], [0, 2, 0]), [["same", "same", "other"]], ONE, VoteConfig())
    assert result.votes.tolist() == [[2, 0, 1]]
    assert result.winner.tolist() == [0]


def test_a_reward_within_the_margin_abstains():
    result = vote(scores([1.0, 1.0, 0.0], [1.0, 0.95, 0.2]), [["a", "b"]], ONE, VoteConfig(margin=0.1))
    assert result.choices.tolist() == [[-1, -1, 1]]
    assert result.winner.tolist() == [1]


def test_a_missing_answer_gets_no_vote_and_rows_without_answers_have_no_winner():
    nan = np.nan
    one = vote(scores([nan] * 3, [-5, -5, -5]), [[None, "b"]], ONE, VoteConfig())
    assert one.winner.tolist() == [1]
    assert one.votes.tolist() == [[0, 3]]
    none = vote(scores([nan] * 3, [nan] * 3), [[None, None]], ONE, VoteConfig())
    assert none.winner.tolist() == [-1]


def test_a_judge_that_refused_a_row_abstains_and_the_others_decide():
    nan = np.nan
    one = vote(scores([nan, 3, 0], [nan, 0, 1]), [["a", "b"]], ONE, VoteConfig())
    assert one.choices.tolist() == [[-1, 0, 1]]
    assert one.winner.tolist() == [0]
    only = vote(scores([nan, 1, 1]), [["a"]], ONE, VoteConfig())
    assert only.votes.tolist() == [[2]]
    half = vote(scores([nan, 3, 0], [1, 0, 1]), [["a", "b"]], ONE, VoteConfig())
    assert half.choices.tolist() == [[1, 0, 1]]


def test_all_abstaining_is_no_majority():
    tied = scores([1, 1, 1], [1, 1, 1])
    assert vote(tied, [["a", "b"]], ONE, VoteConfig(no_majority="skip")).winner.tolist() == [-1]
    assert vote(tied, [["a", "b"]], ONE, VoteConfig()).winner.tolist() == [0]


def test_a_scale_ignores_missing_scores():
    scale = RewardScale.of(np.array([1.0, np.nan, 3.0]))
    assert (scale.mean, scale.std) == (2.0, 1.0)
    assert RewardScale.of(np.array([2.0, 2.0])).std == 1.0


@pytest.mark.parametrize("num_parts", [1, 2, 7, 200])
@pytest.mark.parametrize("mean", [0.0, -1.0e6])
def test_a_scale_over_parts_equals_that_of_the_whole(num_parts, mean):
    whole = np.random.default_rng(0).normal(mean, 3.0, (100, 2))
    whole[::7] = np.nan
    scale = RewardScale.over(np.array_split(whole, num_parts))
    assert scale.mean == pytest.approx(np.nanmean(whole), rel=1e-12)
    assert scale.std == pytest.approx(np.nanstd(whole), rel=1e-9)


@pytest.mark.parametrize("value", [0.1, 1.0e6 / 3])
def test_a_constant_reward_has_scale_one_however_it_is_split(value):
    parts = [np.full(size, value) for size in (3, 7, 10, 11)]
    assert RewardScale.over(parts).std == 1.0
    assert RewardScale.over([]) == RewardScale(0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("So it is 4.\n#### 1,234", r"#### (-?[0-9.,]+)", "1,234"),
        ("The answer is 7. No, the answer is 42.", "answer is (.+?)[.]", "42"),
        (" 42. ", "answer is (.+)", "42"),
        ("plain", None, "plain"),
    ],
)
def test_final_answer(text, pattern, expected):
    assert final_answer(text, pattern) == expected


def test_exact_match_of_a_missing_prediction_is_false():
    assert not exact_match(None, "x", None)
    assert exact_match("42.", "We add. The answer is 42.", "answer is (.+)")


def test_a_vote_counts_with_its_weight():
    given, answers = scores([1, 0, 9], [2, 5, 1], [0, 1, 2]), [["a", "b", "c"]]
    heavy = vote(given, answers, ONE, VoteConfig(), [1, 1, 3])
    assert heavy.votes.tolist() == [[3, 2, 0]]
    assert heavy.winner.tolist() == [0]
    even = vote(given, answers, ONE, VoteConfig(), [1, 1, 1])
    assert even.votes.tolist() == vote(given, answers, ONE, VoteConfig()).votes.tolist()


def test_weights_with_equal_sums_tie():
    given, answers = scores([1, 1, 0], [0, 0, 9]), [["a", "b"]]
    assert vote(given, answers, ONE, VoteConfig(no_majority="skip"), [0.1, 0.2, 0.3]).winner.tolist() == [-1]


def test_a_weight_of_zero_does_not_affect_the_vote():
    watched = vote(scores([1, 0, 0], [0, 1, 99]), [["a", "b"]], ONE, VoteConfig(), [1, 1, 0])
    assert watched.choices.tolist() == [[0, 1, 1]]
    assert watched.votes.tolist() == [[1, 1]]
    assert watched.winner.tolist() == [0]  # a reward of weight zero does not break the tie
