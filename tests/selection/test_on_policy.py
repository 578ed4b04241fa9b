"""The target's own answers under the row's teacher: who teaches which, what is left out, and that nothing else changes."""

import numpy as np
import pytest

from profuser.signals.codec import from_columns
from tests.selection.shard import ANSWERS, WIDTH, K, select

LOSSY, PLAIN = 0, 1
OWN = ("It is 9.", " ", "It was 1.")
"""Answers of the target, which is the plain source. The lossy one teaches the ground truths of rows 0 and 2."""


def on_policy(table):
    return {row["row_id"]: row for row in table.to_pylist() if row["mode"] == "on_policy"}


def test_the_targets_answers_are_taught_by_the_teacher_of_the_ground_truth():
    table, counts = select(target=PLAIN, other=OWN, on_policy={})
    found = on_policy(table)
    assert {row_id: row["teacher"] for row_id, row in found.items()} == {"0": "lossy", "2": "lossy"}
    # Row 1 has a blank answer, and the target itself as its teacher: the first reason counts.
    assert (counts["on_policy_examples"], counts["on_policy_without_answer"], counts["on_policy_without_teacher"]) == (
        2,
        1,
        0,
    )
    topk = from_columns(table, "topk", K, WIDTH)
    for place, row in enumerate(table.to_pylist()):
        if row["mode"] == "on_policy":
            assert row["response_bytes"] == len(OWN[int(row["row_id"])].encode())
            assert np.isfinite(topk.row(place).logprobs[:, 0].astype(np.float32)).sum() >= len(row["response_ids"]) - 1


@pytest.mark.parametrize(
    ("teacher", "left"),
    [("training", {"0": "plain", "2": "plain"}), ("inference", {"1": "plain", "2": "plain"})],
)
def test_the_teacher_is_chosen_by_cross_entropy_or_by_votes(teacher, left):
    scores = ((1.0, 0.0), (0.0, 1.0), (0.0, 1.0))
    settings = {"scores": scores, "other": ("No.", "Yes.", "Well."), "on_policy": {"teacher": teacher}}
    expected = {"training": {"1": "plain"}, "inference": {"1": "plain", "2": "plain"}}[teacher]
    table, counts = select(target=LOSSY, **settings)
    assert {row_id: row["teacher"] for row_id, row in on_policy(table).items()} == expected
    assert counts["on_policy_without_teacher"] == 3 - len(expected)
    assert [row["response_bytes"] for row in on_policy(table).values()] == [
        len(ANSWERS[int(i)].encode()) for i in expected
    ]


def test_other_examples_are_as_without_it_and_an_answer_that_the_teacher_could_not_read_is_left_out():
    usual, before = select(target=PLAIN, other=OWN)
    table, counts = select(target=PLAIN, other=OWN, on_policy={}, unread=("2",))
    assert set(on_policy(table)) == {"0"}
    assert (counts["on_policy_examples"], counts["on_policy_left_out"]) == (1, 1)
    rest = [row for row in table.to_pylist() if row["mode"] != "on_policy"]
    assert str(rest) == str(usual.to_pylist())
    assert counts["examples"] == before["examples"]


@pytest.mark.parametrize("third", [False, True], ids=["one reader", "two readers that agree"])
def test_all_other_sources_together_teach_every_answer_of_the_target(third):
    # The target is the best teacher of two ground truths: alone, it would leave these rows without one.
    settings = {"target": LOSSY, "other": ("No.", "Yes.", "Well.")}
    single, before = select(**settings, on_policy={})
    table, counts = select(**settings, on_policy={"teacher": "average"}, third=third)
    found, alone = on_policy(table), on_policy(single)
    assert (set(alone), set(found)) == ({"1"}, {"0", "1", "2"})
    assert {row["teacher"] for row in found.values()} == {"average"}
    assert (before["on_policy_without_teacher"], counts["on_policy_without_teacher"]) == (2, 0)
    assert counts["on_policy_examples"] == 3
    # Sources that agree are, on average, what each of them is; candidates of equal probability may swap.
    for name in ("response_ids", "rules"):
        assert found["1"][name] == alone["1"][name]
    mine, other = (sorted(zip(row["topk_ids"], row["topk_logprobs"], strict=True)) for row in (found["1"], alone["1"]))
    assert [pair[0] for pair in mine] == [pair[0] for pair in other]
    np.testing.assert_allclose([pair[1] for pair in mine], [pair[1] for pair in other], atol=2e-3)
    assert counts["alignment/plain/none"] == counts.get("alignment/third/none", counts["alignment/plain/none"])


def test_an_answer_that_no_source_could_read_is_left_out_of_the_average():
    settings = {"target": LOSSY, "on_policy": {"teacher": "average"}, "third": True}
    whole, _ = select(**settings)
    table, counts = select(**settings, unread=("2",))
    assert set(on_policy(whole)) - set(on_policy(table)) == {"2"}
    assert counts["on_policy_left_out"] == 1
