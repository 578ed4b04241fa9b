"""Which turns of a conversation are learnt, and what is counted as not used."""

import pytest

from profuser.corpus import RowCounts, prepare_rows
from profuser.corpus.formats import parse_record
from profuser.corpus.rows import RawRow
from profuser.corpus.values import RowFault

TALK = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


def talk(*turns, **weights):
    """Builds a record; `a1=0` gives the turn with that text a weight."""
    turns = [
        {"role": role, "content": text, **({"weight": weights[text]} if text in weights else {})}
        for role, text in turns
    ]
    return {"messages": turns}


def parsed(record, learnt):
    """Returns prompt and response of each example as texts, and the number of unused turns."""
    found = parse_record(record, learnt=learnt)
    return [(*(m.content for m in e.messages), e.response) for e in found.examples], found.unused_turns


def test_every_assistant_turn_is_learnt_with_what_came_before_it():
    assert parsed(talk(*TALK), "all") == ([("q1", "a1"), ("q1", "a1", "q2", "a2")], 0)
    assert parsed(talk(*TALK), "last") == ([("q1", "a1", "q2", "a2")], 0)


def test_a_system_turn_is_part_of_every_prompt():
    assert parsed(talk(("system", "s"), *TALK), "all") == ([("s", "q1", "a1"), ("s", "q1", "a1", "q2", "a2")], 0)


@pytest.mark.parametrize("learnt", ["all", "last"])
def test_a_last_turn_of_the_user_is_left_out_and_counted(learnt):
    assert parsed(talk(*TALK[:3]), learnt) == ([("q1", "a1")], 1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a1": 0, "a2": 1}, ([("q1", "a1", "q2", "a2")], 0)),
        ({"a2": 0}, ([("q1", "a1")], 2)),
        ({"a1": None, "a2": 1.0}, ([("q1", "a1"), ("q1", "a1", "q2", "a2")], 0)),
    ],
)
def test_a_turn_of_weight_0_is_only_context(weights, expected):
    assert parsed(talk(*TALK, **weights), "all") == expected


def test_a_conversation_without_a_turn_to_learn_is_refused():
    with pytest.raises(RowFault, match=r"every assistant turn has weight 0 \(of 4 turns\)"):
        parse_record(talk(*TALK, a1=0, a2=0))


def test_only_the_preferred_response_is_learnt():
    chosen = talk(*TALK)["messages"]
    assert parsed({"chosen": chosen, "rejected": []}, "all")[0] == [("q1", "a1", "q2", "a2")]


def test_counts_of_a_record_are_not_repeated_for_each_of_its_rows():
    records = [{**talk(*TALK, ("user", "q3")), "tools": [1]}, talk(*TALK[:2]), talk(*TALK)]
    counts = RowCounts()
    for row in prepare_rows([RawRow("f", n, record) for n, record in enumerate(records, 1)], turns="all"):
        counts.add(row)
    assert (counts.accepted, counts.reasons) == (2, {"duplicate": 3})
    assert counts.not_used() == {"unused_fields/tools": 1, "unused_turns": 1}
