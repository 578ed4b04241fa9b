"""Tool calls and tools' results in a conversation: which are used as context, and what is refused with the reason."""

import json
from typing import Any

import pytest

from profuser.corpus import CorpusRow, Message, prepare_rows
from profuser.corpus.formats import parse_record
from profuser.corpus.rows import RawRow
from profuser.corpus.tool_turns import as_turns
from profuser.corpus.values import RowFault


def call(name: Any = "w", arguments: Any = '{"city": "Bern"}', **more: Any):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def turn(role, content=None, **more):
    return {"role": role, "content": content, **more}


U, A = turn("user", "q"), turn("assistant", "a")
C, T = turn("assistant", tool_calls=[call(id="c1")]), turn("tool", "3 C", tool_call_id="c1")
AGAIN = [turn("user", "q2"), turn("assistant", "a2")]
TWO = turn("assistant", "Both.", tool_calls=[call(id="c1"), call("v", {"x": [1, None]}, id="c2")])
SAYS = {"u": "user", "a": "assistant", "c": "tool_calls", "t": "tool", "s": "system"}


def canonical(text="", *calls):
    return json.dumps({"content": text, "tool_calls": calls}, ensure_ascii=False, separators=(",", ":"))


BERN = {"type": "function", "function": {"name": "w", "arguments": {"city": "Bern"}}}
SHAPES = {
    "openai": ([U, C, T, A], canonical("", {"type": "function", "id": "c1", "function": BERN["function"]})),
    "text beside the call": (
        [U, turn("assistant", " Let me look. ", tool_calls=[call()]), turn("tool", "3 C"), A],
        canonical("Let me look.", BERN),
    ),
    "no text field": ([U, {"role": "assistant", "tool_calls": [call()]}, turn("tool", "3 C"), A], canonical("", BERN)),
    "arguments as an object": (
        [U, turn("assistant", "", tool_calls=[call(arguments={"city": "Bern"})]), turn("tool", "3 C"), A],
        canonical("", BERN),
    ),
    "no arguments": (
        [U, turn("assistant", "", tool_calls=[call(arguments="")]), turn("tool", "3 C"), A],
        canonical("", {"type": "function", "function": {"name": "w", "arguments": {}}}),
    ),
    "name and arguments alone": (
        [U, turn("assistant", tool_calls=[BERN["function"]]), turn("ipython", "3 C"), A],
        canonical("", BERN),
    ),
    "function_call": (
        [U, turn("assistant", function_call=BERN["function"]), turn("function", "3 C", name="w"), A],
        canonical("", BERN),
    ),
    "a table's nulls": (
        [{"tool_calls": None, "name": None, "tool_call_id": None, **each} for each in (U, C, T, A)],
        canonical("", {"type": "function", "id": "c1", "function": BERN["function"]}),
    ),
}  # fmt: skip
TEXTS = {
    "one": '{"name": "w", "arguments": {"city": "Bern"}}',
    "parameters": '{"name": "w", "parameters": "{\\"city\\": \\"Bern\\"}"}',
    "a list": '[{"name": "w", "arguments": {"city": "Bern"}}]',
}


def roles(example):
    initials = {role: initial for initial, role in SAYS.items()}
    return "".join(initials[message.role] for message in example.messages)


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_of_each_shape_have_one_form(shape):
    turns, expected = SHAPES[shape]
    (example,) = parse_record({"messages": turns}).examples
    assert example.messages == (Message("user", "q"), Message("tool_calls", expected), Message("tool", "3 C"))
    assert example.response == "a"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_calls_as_the_text_of_a_turn_have_the_same_form(role, text):
    turns = [("human", "q"), (role, TEXTS[text]), ("observation", "3 C"), ("gpt", "a")]
    record = {"conversations": [{"from": who, "value": said} for who, said in turns]}
    (example,) = parse_record(record).examples
    assert example.messages == (
        Message("user", "q"),
        Message("tool_calls", canonical("", BERN)),
        Message("tool", "3 C"),
    )


@pytest.mark.parametrize(
    ("turns", "last", "every", "left"),
    [
        ([U, C, T, A], ["uct"], ["uct"], 0),
        ([turn("system", "s"), U, C, T, C, T, A], ["suctct"], ["suctct"], 0),
        ([U, TWO, T, turn("tool", "4"), A, *AGAIN], ["ucttau"], ["uctt", "ucttau"], 0),
        ([*AGAIN, U, C, T, A], ["uauct"], ["u", "uauct"], 0),
        ([U, C, T, A, U, C, T], None, ["uct"], 3),
        ([U, A, U, C], None, ["u"], 2),
        ([U, A, U, TWO, T], None, ["u"], 3),
        ([U, A, U, {**C, "weight": 0}], ["u"], ["u"], 2),
        ([U, C, T, A, U], ["uct"], ["uct"], 1),
    ],
)
def test_answers_in_text_are_learnt_and_calls_are_their_context(turns, last, every, left):
    found = parse_record({"messages": turns}, learnt="all")
    assert ([roles(example) for example in found.examples], found.unused_turns) == (every, left)
    assert all(example.response in ("a", "a2") for example in found.examples)
    if last is None:
        with pytest.raises(RowFault, match="the response is a tool call, which each template"):
            parse_record({"messages": turns})
    else:
        assert [roles(example) for example in parse_record({"messages": turns}).examples] == last


@pytest.mark.parametrize("learnt", ["last", "all"])
@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([U, C], "the response is a tool call"),
        ([U, C, T], "the response is a tool call"),
        ([U, turn("assistant", "Let me look.", tool_calls=[call()])], "the response is a tool call"),
        ([U, T, A], "a tool's result follows no tool call (user, tool, assistant)"),
        ([U, A, T, turn("assistant", "b")], "a tool's result follows no tool call"),
        ([U, C, A], "a tool call has no result (user, tool_calls, assistant)"),
        ([U, C, U, A], "a tool call has no result"),
        ([U, C, C, T, A], "a tool call has no result"),
        ([U, C, T, *AGAIN], "user and assistant do not alternate"),
        ([U, A, C, T, A], "user and assistant do not alternate"),
        ([C, T, A], "messages do not start with a user turn"),
        ([U, TWO, T, A], "tool calls and their results differ in number (after turn 2)"),
        ([U, C, T, T, A], "tool calls and their results differ in number (after turn 2)"),
        ([U, TWO, turn("tool", "4", tool_call_id="c2"), T, A], "the tools' results are not in the order of their call"),
        ([U, C, turn("tool", "4", name="v"), A], "the tools' results are not in the order of their calls (after turn 2)"),
        ([{**U, "tool_calls": [call()]}, A], "a tool call in a turn of user (turn 1)"),
        ([U, turn("assistant", tool_calls=["w"]), T, A], "a tool call is text, expected an object (turn 2)"),
        ([U, turn("assistant", tool_calls=[{"id": "1"}]), T, A], "a tool call names no function (turn 2)"),
        ([U, turn("assistant", tool_calls=[{"type": "custom"}]), T, A], "a tool call is not of a function: 'custom'"),
        ([U, turn("assistant", tool_calls=[call(3)]), T, A], "the name of a called function is a number"),
        ([U, turn("assistant", tool_calls=[call(id=7)]), T, A], "the id of a tool call is a number"),
        ([U, turn("assistant", tool_calls=[call(arguments="{")]), T, A], "a tool call has arguments that are not JSON"),
        ([U, turn("assistant", tool_calls=[call(arguments="[" * 99_999)]), T, A], "a tool call has arguments that are"),
        ([U, turn("assistant", tool_calls=[call(arguments="[1]")]), T, A], "a tool call has arguments that are a list"),
        ([U, turn("assistant", tool_calls=[call(arguments='{"n": NaN}')]), T, A], "a tool call has arguments that JSON"),
        ([U, turn("assistant", tool_calls=[call(arguments='{"n": "\\ud800"}')]), T, A], "a tool call has an unpaired"),
        ([U, turn("tool_call", "w(1)"), T, A], "a tool call is not JSON (turn 2)"),
        ([U, turn("tool_call", "[]"), T, A], "a turn of tool calls has none (turn 2)"),
        ([U, C, turn("tool", ""), A], "content is empty (turn 3)"),
        ([U, C, turn("tool", {"c": 3}), A], "content is an object, expected text (turn 3)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_reason(turns, reason, learnt):
    (row,) = prepare_rows([RawRow("data.jsonl", 1, {"messages": turns})], turns=learnt)
    assert not isinstance(row, CorpusRow)
    assert row.reason.startswith(reason)
    assert row.reason.isprintable()


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [U, C, T], "completion": [A]},
        {"prompt": [U], "completion": [C, T, A]},
        {"prompt": [U], "completion": [{"role": "assistant", "tool_calls": [call(id="c1")]}, T, A]},
        {"prompt": [U], "chosen": [C, T, A], "rejected": [A]},
        {"chosen": [U, C, T, A], "rejected": [U, A]},
        {"messages": json.dumps([U, C, T, A])},
    ],
)
def test_other_shapes_take_the_same_turns(record):
    (example,) = parse_record(record).examples
    assert (roles(example), example.response) == ("uct", "a")


def test_a_context_follows_the_question_and_not_the_tools():
    (example,) = parse_record({"prompt": [U, C, T], "response": "a", "context": "c"}).examples
    assert [example.messages[0].content, example.messages[2].content] == ["q\n\nc", "3 C"]


def test_descriptions_of_tools_are_named_as_not_used():
    assert parse_record({"messages": [U, C, T, A], "tools": [call()]}).unused_fields == ("tools",)


def test_a_result_has_the_label_of_its_call():
    (example,) = parse_record({"messages": [U, TWO, turn("tool", "3"), turn("tool", "4"), A]}).examples
    assert as_turns(example.messages)[1:] == [
        {"role": "assistant", "content": "Both.", "tool_calls": [
            {"type": "function", "id": "c1", "function": {"name": "w", "arguments": {"city": "Bern"}}},
            {"type": "function", "id": "c2", "function": {"name": "v", "arguments": {"x": [1, None]}}},
        ]},
        {"role": "tool", "name": "w", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "name": "v", "tool_call_id": "c2", "content": "4"},
    ]  # fmt: skip
