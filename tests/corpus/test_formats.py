"""Record shapes: detection, prompt and response, and the reasons for refusing a record."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.corpus import CorpusRow, Message, prepare_rows
from profuser.corpus.formats import parse_record
from profuser.corpus.rows import RawRow
from profuser.corpus.values import RowFault

QUESTION, ANSWER = "Add 1 and 2.", "3"


def parse(record, format="auto"):
    """Returns the only example of a record."""
    (example,) = parse_record(record, format).examples
    return example


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
def test_a_shape_is_detected_and_parsed_as_if_it_were_named(shape):
    assert parse_record(SHAPES[shape]).shape == shape
    assert parse(SHAPES[shape], shape) == parse(SHAPES[shape]) == ((Message("user", QUESTION),), ANSWER)


@pytest.mark.parametrize(("shape", "asked"), permutations(SHAPES, 2))
def test_a_record_of_another_shape_than_the_named_one_is_refused(shape, asked):
    with pytest.raises(RowFault, match="no "):
        parse_record(SHAPES[shape], asked)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_without_the_fields_is_refused_and_its_fields_named(shape):
    with pytest.raises(RowFault) as caught:
        parse_record({"other": "x"}, shape)
    assert str(caught.value) == MISSING[shape]


@pytest.mark.parametrize("missing", [None, "", [], 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_next_likely_shape_is_used_if_the_first_has_no_text(shape, missing):
    # In a Parquet table of several shapes each row has all columns, with nulls in those of the other shapes.
    empty = {"messages": missing, "conversations": missing, "instruction": missing, "output": missing}
    parsed = parse_record({**empty, "question": missing, "answer": missing, **SHAPES[shape]})
    assert (parsed.shape, parsed.examples[0].response) == (shape, ANSWER)


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
def test_text_is_kept_byte_for_byte_except_surrounding_whitespace(record, prompt, response):
    assert parse(record) == ((Message("user", prompt),), response)


@pytest.mark.parametrize("make", [chat, sharegpt])
def test_a_long_conversation_keeps_all_turns_and_their_roles(make):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("human", "c"), ("gpt", "d")]
    example = parse(make(*turns))
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
        ([("user", "a"), ("system", "s"), ("assistant", "b")], "user and assistant do not alternate (user, system"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "user and assistant do not alternate"),
        ([("user", ""), ("assistant", "b")], "content is empty (turn 1)"),
        ([("user", "a"), ("assistant", None)], "content is null, expected text (turn 2)"),
        ([("user", [{"type": "text"}]), ("assistant", "b")], "content is a list, expected text (turn 1)"),
        ([("user", "a"), ("tool", "b")], "no assistant turn (of 2 turns)"),
        ([("user", "a"), ("tool", "b"), ("assistant", "c")], "a tool's result follows no tool call (user, tool, assis"),
        ([("user", "a"), (None, "b")], "unknown role None (turn 2)"),
        ([(["user"], "a"), ("assistant", "b")], "unknown role ['user'] (turn 1)"),
    ],
)
def test_the_reason_for_refusing_a_conversation_names_the_wrong_turn(turns, reason):
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
def test_a_value_that_is_not_a_conversation_is_refused(turns, reason):
    with pytest.raises(RowFault) as caught:
        parse_record({"messages": turns}, "messages")
    assert str(caught.value) == reason


@pytest.mark.parametrize(("wrong", "kind"), [(3, "a number"), (True, "a boolean"), ({}, "an object"), ([], "a list")])
def test_the_type_of_a_field_that_is_not_text_is_named(wrong, kind):
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
def test_any_record_is_accepted_or_refused_in_one_line(record):
    (row,) = prepare_rows([RawRow("data.jsonl", 1, record)])
    if isinstance(row, CorpusRow):
        assert row.response
        assert row.messages[-1].role == "user"
    else:
        assert row.reason.isprintable()
        assert len(row.reason) < 500
