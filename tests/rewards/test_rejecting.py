"""Answers that every verifier rejects do not teach, and ties of equals are shared out or skipped, never decided by order."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from profuser.alignment.token_bytes import TokenBytes
from profuser.config import identity
from profuser.recipe.rewards import RewardConfig, VoteConfig
from profuser.recipe.selecting import SelectConfig
from profuser.rewards.voting import RewardScale, row_draws, vote
from profuser.selection.teachers import Chooser
from tests import tiny

NAN = float("nan")
SOURCES = ("a", "b", "c")
VERIFIERS = [
    {"kind": "last_number"},
    {"kind": "exact_match"},
    {"kind": "answer_match", "pattern": "(x)"},
    {"kind": "callable", "path": "module:function"},
    {"kind": "chrf"},
    {"kind": "rouge_l"},
]


def made(**settings):
    return TypeAdapter(RewardConfig).validate_python({"name": "judge", **settings})


def won(scores, answers=None, config=None, weights=None, thresholds=None, seed=0):
    """Votes on rows of answers; `scores` is `[N][M][R]`."""
    scores = np.array(scores, dtype=float)
    num_rows, num_answers, num_rewards = scores.shape
    answers = answers or [[f"answer {place}" for place in range(num_answers)]] * num_rows
    draws = row_draws((f"row {row}" for row in range(num_rows)), seed)
    scales = [RewardScale(0.0, 1.0)] * num_rewards
    return vote(scores, answers, scales, config or VoteConfig(), weights, thresholds or [0.0] * num_rewards, draws)


@pytest.mark.parametrize("settings", VERIFIERS, ids=lambda settings: settings["kind"])
def test_every_verifier_rejects_by_default_and_a_reward_model_never(settings):
    verifier = made(**settings)
    assert verifier.rejects_up_to == 0.0
    assert made(**settings, accept_above=None).rejects_up_to is None
    # Stored recipes keep their fingerprint.
    assert not {"accept_above", "categories", "except_categories"} & identity(verifier).keys()
    assert made(kind="reward_model", model="m").rejects_up_to is None
    with pytest.raises(ValidationError, match="accept_above"):
        made(kind="reward_model", model="m", accept_above=0.5)


def test_a_vote_keeps_its_fingerprint():
    assert identity(VoteConfig()) == {"margin": 0.0, "no_majority": "tie_break"}


def test_an_answer_that_every_verifier_rejects_does_not_teach_whatever_reward_models_say():
    wrong = won([[[0, 9], [0, 5]]], thresholds=[0.0, None])
    assert (wrong.winner.tolist(), wrong.rejected.tolist()) == ([-1], [[True, True]])
    right = won([[[0, 9], [1, 5]]], thresholds=[0.0, None])
    assert right.winner.tolist() == [1]
    assert right.votes.tolist() == [[0, 2]]
    off = won([[[0, 9], [0, 5]]], thresholds=[None, None])
    assert off.winner.tolist() == [0]


def test_one_verifier_that_accepts_is_enough_and_one_without_weight_rejects_nothing():
    assert won([[[0, 1], [0, 0]]]).rejected.tolist() == [[False, True]]
    assert won([[[0, 1], [0, 0]]], weights=[1, 0]).rejected.tolist() == [[True, True]]
    assert won([[[0.4], [0.6]]], thresholds=[0.5]).winner.tolist() == [1]


def test_a_verifier_rejects_nothing_in_rows_that_it_does_not_judge():
    found = won([[[NAN, 0.2], [NAN, 0.1]], [[0, NAN], [0, NAN]], [[NAN, NAN], [NAN, NAN]]])
    assert found.winner.tolist() == [0, -1, -1]
    assert found.rejected.tolist() == [[False, False], [True, True], [False, False]]
    assert found.judged.tolist() == [True, True, False]


def test_a_blank_answer_is_worse_than_any_judged_one():
    assert won([[[NAN], [-3.0]]], [["", "b"]], thresholds=[None]).winner.tolist() == [1]
    assert won([[[NAN], [1.0]]], [["", "b"]]).rejected.tolist() == [[True, False]]


@pytest.mark.parametrize("right", [(0, 1, 2), (1, 2), (0, 2)])
def test_a_tie_is_shared_out_evenly_among_equals(right):
    scores = [[[float(place in right)] for place in range(3)]] * 3000
    found = won(scores)
    shares = Counter(found.winner.tolist())
    assert set(shares) == set(right)
    assert found.tied.all()
    # Four standard deviations of a fair share.
    assert all(abs(n - 3000 / len(right)) < 4 * (3000 * 0.25) ** 0.5 for n in shares.values())
    assert found.winner.tolist() == won(scores).winner.tolist() != won(scores, seed=1).winner.tolist()
    assert (won(scores, config=VoteConfig(ties="skip")).winner == -1).all()


def test_equal_answers_of_several_sources_are_no_tie_but_are_shared_out_too():
    rows = [["same", "same", "other"]] * 3000
    found = won([[[1.0], [1.0], [0.0]]] * 3000, rows, VoteConfig(ties="skip"))
    shares = Counter(found.winner.tolist())
    assert set(shares) == {0, 1}
    assert abs(shares[0] - 1500) < 4 * (3000 * 0.25) ** 0.5
    assert not found.tied.any()


@given(st.permutations(range(3)), st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3), st.integers(0, 9))
def test_the_order_of_the_sources_decides_nothing_but_the_draw(order, rewards, seed):
    here = won([[[reward] for reward in rewards]], seed=seed)
    there = won([[[rewards[place]] for place in order]], seed=seed)
    assert (here.winner[0] < 0) == (there.winner[0] < 0)
    if here.winner[0] >= 0:
        assert rewards[here.winner[0]] == rewards[order[there.winner[0]]] == 1.0


def shard(scores):
    """A corpus shard, three sources' answers and one verifier's scores of them."""
    ids = [f"row {row}" for row in range(len(scores))]
    corpus = pa.table({"row_id": ids, "response": ["truth"] * len(ids)})
    collected = [
        pa.table(
            {
                "row_id": ids,
                "refused": pa.array([None] * len(ids), pa.string()),
                "response_bytes": [5] * len(ids),
                "training_nats": [NAN] * len(ids),
                "training_ids": pa.array([[]] * len(ids), pa.list_(pa.int64())),
                "answers": [[f"{name} says {row}"] for row in ids],
                "finish_reasons": [["stop"]] * len(ids),
            }
        )
        for name in SOURCES
    ]
    return corpus, collected, [pa.table({"row_id": ids, "scores": scores})]


@pytest.mark.parametrize(("ties", "shared", "skipped"), [("share", 1, 0), ("skip", 0, 1)])
def test_a_shard_counts_the_rows_whose_answers_do_not_teach(ties, shared, skipped):
    """The first run over released models taught the answers of such rows: all wrong, each by the first source."""
    scores = [[0.0, 0.0, 0.0]] * 4 + [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [NAN, NAN, NAN]]
    config = SelectConfig(vote=VoteConfig(ties=ties))
    tokenizer = tiny.byte_level_tokenizer()
    tokens = [TokenBytes.from_tokenizer(tokenizer, len(tokenizer))] * 3
    chooser = Chooser(SOURCES, SOURCES, tokens, config, [RewardScale(0.0, 1.0)], thresholds=[0.0])
    choices, counts = chooser.choose(*shard(scores))
    assert {choice.row for choice in choices} == ({4, 5} if shared else {4})
    assert counts["rows_without_accepted_answer"] == 4
    assert counts["rows_not_judged"] == 1
    assert (counts["ties_shared_out"], counts["rows_without_majority"]) == (shared, skipped)
