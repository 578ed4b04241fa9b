"""Shapes of records: which one a record has, what becomes prompt and response, and why a record is refused."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.corpus import CorpusRow, Message, prepare_rows
from profuser.corpus.formats import RowFault, parse_detected, parse_record
from profuser.corpus.rows import RawRow

QUESTION, ANSWER = "Add 1 and 2.", "3"


def chat(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def sharegpt(*pairs):
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


SHAPES = {
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "qa": {"question": QUESTION, "answer": ANSWER},
    "messages": chat(("user", QUESTION), ("assistant", ANSWER)),
    "sharegpt": sharegpt(("human", QUESTION), ("gpt", ANSWER)),
}
MISSING = {
    "alpaca": "no field 'instruction' (fields: other)",
    "qa": "no question with an answer (fields: other)",
    "messages": "no field 'messages' (fields: other)",
    "sharegpt": "no field 'conversations' (fields: other)",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_recognised_and_reads_the_same_when_it_is_named(shape):
    found, example = parse_detected(SHAPES[shape])
    assert found == shape
    assert example == parse_record(SHAPES[shape], shape) == parse_record(SHAPES[shape], "auto")
    assert example == ((Message("user", QUESTION),), ANSWER)


@pytest.mark.parametrize(("shape", "asked"), permutations(SHAPES, 2))
def test_a_record_of_another_shape_than_the_named_one_is_refused(shape, asked):
    with pytest.raises(RowFault, match="no "):
        parse_record(SHAPES[shape], asked)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_without_the_fields_is_refused_with_those_that_it_has(shape):
    with pytest.raises(RowFault) as caught:
        parse_record({"other": "x"}, shape)
    assert str(caught.value) == MISSING[shape]


@pytest.mark.parametrize("missing", [None, "", [], 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_where_the_likeliest_shape_has_nothing_the_next_is_taken(shape, missing):
    # A Parquet table of several shapes has all columns in each row, and nulls in those of the others.
    empty = {"messages": missing, "conversations": missing, "instruction": missing, "output": missing}
    found, example = parse_detected({**empty, "question": missing, "answer": missing, **SHAPES[shape]})
    assert (found, example.response) == (shape, ANSWER)


@pytest.mark.parametrize(
    ("record", "prompt", "response"),
    [
        ({"instruction": " Sort.\n", "input": "\tb a ", "output": " a b\n"}, "Sort.\n\nb a", "a b"),
        ({"instruction": "Sort.", "input": " \n", "output": "a b"}, "Sort.", "a b"),
        ({"instruction": "a\r\n\n  b", "output": "x\n\n y"}, "a\r\n\n  b", "x\n\n y"),
        (
            {"prompt": "é e\u0301 \ufb01 漢 👩‍🚀", "response": "\u200bé e\u0301"},
            "é e\u0301 \ufb01 漢 👩‍🚀",
            "\u200bé e\u0301",
        ),
        ({"question": "a", "answer": "b", "prompt": "c", "response": "d"}, "a", "b"),
        ({"question": "a", "prompt": "c", "completion": "d"}, "c", "d"),
        ({"question": "a", "answer": "b", "id": 7, "score": float("nan")}, "a", "b"),
    ],
)
def test_text_is_kept_byte_for_byte_but_for_blanks_around_it(record, prompt, response):
    assert parse_record(record, "auto") == ((Message("user", prompt),), response)


@pytest.mark.parametrize("make", [chat, sharegpt])
def test_a_long_conversation_keeps_all_turns_and_their_roles(make):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("human", "c"), ("gpt", "d")]
    example = parse_record(make(*turns), "auto")
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "user"]
    assert [message.content for message in example.messages] == ["s", "a", "b", "c"]
    assert example.response == "d"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("user", "a")], "no assistant turn (of 1 turns)"),
        ([("system", "s")], "no assistant turn (of 1 turns)"),
        ([("system", "s"), ("assistant", "b")], "messages do not start with a user turn (system, assistant)"),
        ([("user", "a"), ("assistant", "b"), ("system", "s")], "messages end with a system turn"),
        ([("user", "a"), ("system", "s"), ("assistant", "b")], "user and assistant do not take turns (user, system"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "user and assistant do not take turns"),
        ([("user", ""), ("assistant", "b")], "content is empty (turn 1)"),
        ([("user", "a"), ("assistant", None)], "content is null, expected text (turn 2)"),
        ([("user", [{"type": "text"}]), ("assistant", "b")], "content is a list, expected text (turn 1)"),
        ([("user", "a"), ("tool", "b")], "unknown role 'tool' (turn 2)"),
        ([("user", "a"), (None, "b")], "unknown role None (turn 2)"),
        ([(["user"], "a"), ("assistant", "b")], "unknown role ['user'] (turn 1)"),
    ],
)
def test_a_conversation_without_a_prompt_and_a_response_says_which_turn_is_wrong(turns, reason):
    with pytest.raises(RowFault) as caught:
        parse_record(chat(*turns), "messages")
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "messages is null, expected a list of turns"),
        ({"role": "user"}, "messages is an object, expected a list of turns"),
        (["a", "b"], "a turn is text, expected an object (turn 1)"),
        ([{"content": "a"}], "a turn has no role (turn 1; fields: content)"),
        ([{"role": "user"}], "no field 'content' (turn 1)"),
        ([{}], "a turn has no role (turn 1; fields: none)"),
    ],
)
def test_what_is_no_conversation_is_refused(turns, reason):
    with pytest.raises(RowFault) as caught:
        parse_record({"messages": turns}, "messages")
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("wrong", "kind"), [(3, "a number"), (True, "true or false"), ({}, "an object"), ([], "a list")]
)
def test_a_field_that_is_no_text_is_called_what_it_is(wrong, kind):
    with pytest.raises(RowFault, match=f"^output is {kind}, expected text$"):
        parse_record({"instruction": "a", "output": wrong}, "auto")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["messages", "conversations", "instruction", "input", "output", "question", "answer", "role", "a\nb", "x" * 99]
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]) | VALUES, "content": VALUES}),
    max_size=4,
)


@settings(max_examples=40)
@given(record=st.dictionaries(st.sampled_from(FIELDS), VALUES | TURNS, max_size=6))
def test_any_record_is_taken_or_refused_in_one_line(record):
    (row,) = prepare_rows([RawRow("data.jsonl", 1, record)])
    if isinstance(row, CorpusRow):
        assert row.response
        assert row.messages[-1].role == "user"
    else:
        assert row.reason.isprintable()
        assert len(row.reason) < 500
