"""Shapes that are common in public: what becomes the prompt and the response, and what is refused or named as not used."""

import json
from pathlib import Path
from typing import get_args

import pytest

from profuser.corpus import CorpusRow, prepare_rows, read_corpus
from profuser.corpus.formats import CorpusFormat, parse_record
from profuser.corpus.rows import RawRow
from profuser.corpus.shapes import SHAPES
from profuser.corpus.values import RowFault
from profuser.recipe.models import CorpusConfig

CASES = Path(__file__).parents[3] / "shared" / "cases" / "corpora.jsonl"
QA = ["q"], "a"
SYSTEM_QA = ["s: Speak French.", "q"], "a"


def say(*turns, role="role", text="content"):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{role: roles.get(who, who), text: what} for who, what in turns]


U, A = ("u", "q"), ("a", "a")
TREE = {"role": "prompter", "text": "q", "message_id": "1", "replies": []}


def reply(text, rank=None, replies=(), role="assistant", **more):
    return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}


RECORDS = {
    "dolly": ({"instruction": "q", "context": "c", "response": "a"}, (["q\n\nc"], "a")),
    "instruction, response": ({"instruction": "q", "response": "a"}, QA),
    "input, output": ({"input": "q", "output": "a"}, QA),
    "metamath": ({"query": "q", "response": "a", "type": "t"}, QA),
    "problem, solution": ({"problem": "q", "solution": "a"}, QA),
    "openorca": ({"system_prompt": "Speak French.", "question": "q", "response": "a"}, SYSTEM_QA),
    "openorca without system": ({"system_prompt": "", "question": "q", "response": "a"}, QA),
    "question, answer with context": ({"question": "q", "context": "c", "answer": "a"}, (["q\n\nc"], "a")),
    "context of several texts": ({"question": "q", "context": ["c", "d"], "answer": "a"}, (["q\n\nc\n\nd"], "a")),
    "trl": ({"prompt": say(U), "completion": say(A)}, QA),
    "trl, system": ({"prompt": say(("s", "Speak French."), U), "completion": say(A)}, SYSTEM_QA),
    "chosen beside a prompt": ({"prompt": "q", "chosen": "a", "rejected": "b"}, QA),
    "chosen without rejected": ({"question": "q", "system": "Speak French.", "chosen": "a"}, SYSTEM_QA),
    "chosen with instruction and input": ({"instruction": "q", "input": "c", "chosen": "a"}, (["q\n\nc"], "a")),
    "chosen beside an empty prompt": ({"prompt": "", "question": "q", "chosen": "a"}, QA),
    "chosen as turns": ({"prompt": "q", "chosen": say(U, A), "rejected": say(U, ("a", "b"))}, QA),
    "chosen as an answer's turn": ({"prompt": say(U), "chosen": say(A)}, QA),
    "chosen alone": ({"chosen": say(U, A), "rejected": say(U, ("a", "b"))}, QA),
    "chosen in Anthropic's form": (
        {"chosen": "\n\nHuman: p\n\nAssistant: r\n\nHuman: q\n\nAssistant: a", "rejected": ""},
        (["p", "a: r", "q"], "a"),
    ),
    "a prompt in Anthropic's form": ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a"}, QA),
    "conversation": ({"conversation": say(U, A)}, QA),
    "conversation of from, value": ({"conversation": say(U, A, role="from", text="value")}, QA),
    "messages as text": ({"messages": json.dumps(say(U, A))}, QA),
    "messages as maps": ({"messages": [[*turn.items()] for turn in say(U, A)]}, QA),
    "messages, text parts": ({"messages": say(("u", [{"type": "text", "text": "q"}]), A)}, QA),
    "messages, no system": ({"messages": say(("s", ""), U, A)}, QA),
    "messages, system beside": ({"system": "Speak French.", "messages": say(U, A)}, SYSTEM_QA),
    "messages, system in both": ({"system": "Speak French.", "messages": say(("s", "Speak French."), U, A)}, SYSTEM_QA),
    "messages, developer": ({"messages": say(("developer", "Speak French."), U, A)}, SYSTEM_QA),
    **{f"messages, {role}": ({"messages": say(U, (role, "a"))}, QA) for role in ("chatgpt", "bing", "bard", "model")},
    "sharegpt, system beside": (
        {"system": "Speak French.", "conversations": say(("human", "q"), ("gpt", "a"), role="from", text="value")},
        SYSTEM_QA,
    ),
    "alpaca, system and history": (
        {"instruction": "q", "input": "", "output": "a", "system": "Speak French.", "history": [["p", "r"]]},
        (["s: Speak French.", "p", "a: r", "q"], "a"),
    ),
    "alpaca, history as turns": (
        {"instruction": "q", "output": "a", "history": say(("u", "p"), ("a", "r"))},
        (["p", "a: r", "q"], "a"),
    ),
    "alpaca, NaN": ({"instruction": "q", "input": float("nan"), "output": "a", "history": []}, QA),
    "oasst": ({"prompt": {**TREE, "replies": [reply("b", 1), reply("a", 0)]}, "tree_state": "ready"}, QA),
    "oasst, deleted": ({"prompt": {**TREE, "replies": [reply("b", 0, deleted=True), reply("a", 1)]}}, QA),
    "oasst, deep": (
        {"prompt": {**TREE, "text": "p", "replies": [reply("r", 0, [
            reply("x", role="prompter"), reply("q", role="prompter", replies=[reply("a")])])]}},
        (["p", "a: r", "q"], "a"),
    ),
}  # fmt: skip


def shown(example):
    marks = {"system": "s: ", "user": "", "assistant": "a: "}
    return [marks[message.role] + message.content for message in example.messages], example.response


@pytest.mark.parametrize("name", RECORDS)
def test_a_shape_is_recognised_and_all_of_its_prompt_is_used(name):
    record, expected = RECORDS[name]
    parsed = parse_record(record)
    assert [shown(example) for example in parsed.examples] == [expected]
    assert parsed == parse_record(record, parsed.shape)
    assert parsed.unused_fields == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": say(("s", "x"), U, A), "system": "y"}, "two system texts that differ"),
        ({"prompt": "p", "question": "q", "chosen": say(U, A)}, "prompt is not the prompt in chosen"),
        ({"chosen": "a", "rejected": "b"}, "chosen has no prompt: neither a field beside it nor text"),
        ({"messages": "hello"}, "messages is text that is not a JSON list of turns"),
        (
            {"messages": say(("u", [{"type": "image_url"}]), A)},
            "content has a part that is not text: 'image_url' (turn 1)",
        ),
        (
            {"messages": [*say(U), {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "the response is a tool call, which",
        ),
        ({"messages": say(U, ("tool", "3"), A)}, "a tool's result follows no tool call (user, tool, assistant)"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history has text, expected pairs"),
        ({"prompt": {"replies": []}}, "a message has no known role (message 1)"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(record, reason):
    with pytest.raises(RowFault) as caught:
        parse_record(record)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"question": "q", "answer": "a", "choices": ["a", "b"], "id": 7}, ("choices",)),
        ({"question": "q", "answer": "a", "input": "x", "choices": []}, ("input",)),
        ({"prompt": "q", "instruction": "other", "chosen": "a"}, ("instruction",)),
        ({"messages": say(U, A), "tools": [{"type": "function"}]}, ("tools",)),
        ({"question": "q", "answer": "a", "hint": "Think.", "steps": ["one", "two"], "n": 3}, ("hint", "steps")),
        ({"question": "q", "answer": "a", "page_url": "x", "id": "x", "model_name": "m", "created_at": "May"}, ()),
        ({"question": "q", "answer": "a", "length": "17", "note": " ", "more": {"x": "y"}}, ()),
        ({"messages": say(U, A), "draft": say(U, A)}, ("draft",)),
        ({"messages": [*say(U), {**say(A)[0], "reasoning_content": "two"}]}, ("reasoning_content",)),
    ],
)
def test_fields_with_text_or_that_would_change_the_meaning_are_named_if_they_are_not_used(record, fields):
    assert parse_record(record).unused_fields == fields


def test_a_record_without_its_instruction_is_not_taken_for_input_and_output():
    with pytest.raises(RowFault, match="output is empty"):
        parse_record({"instruction": "Sort.", "input": "b a", "output": ""})


def test_every_shape_can_be_named_in_the_recipe():
    names = {"auto", *(shape.name for shape in SHAPES)}
    assert names == {*get_args(CorpusFormat)} == {*get_args(CorpusConfig.model_fields["format"].annotation)}


@pytest.mark.parametrize("ends", ["\n", "\r\n", " \n"])
def test_a_line_that_is_a_list_of_turns_is_a_record(tmp_path, ends):
    lines = [json.dumps(say(("u", f"q{n}"), A)) for n in range(3)]
    (tmp_path / "a.jsonl").write_text(ends.join(lines), newline="")
    (tmp_path / "b.json").write_text(f"[{','.join(lines)}]")
    for name in ("a.jsonl", "b.json"):
        rows = list(prepare_rows(read_corpus(str(tmp_path / name))))
        assert [row.messages[0].content for row in rows] == ["q0", "q1", "q2"]


def test_messages_of_flat_trees_are_joined_and_those_without_a_parent_refused():
    def message(tree, name, parent, text, role="assistant", rank=None):
        return {
            "message_tree_id": tree,
            "message_id": name,
            "parent_id": parent,
            "text": text,
            "role": role,
            "rank": rank,
        }

    flat = [
        message("t", "t", None, "q1", "prompter"),
        message("t", "b", "t", "worse", rank=1),
        message("t", "c", "t", "a1", rank=0),
        message("t", "d", "gone", "lost"),
        message("u", "v", "u", "a2"),
        message("u", "u", None, "q2", "prompter"),
    ]
    rows = list(prepare_rows([RawRow("f", n, record) for n, record in enumerate(flat, 1)]))
    kept = [row for row in rows if isinstance(row, CorpusRow)]
    assert [(row.messages[0].content, row.response, row.source_line) for row in kept] == [
        ("q1", "a1", 1),
        ("q2", "a2", 6),
    ]
    assert kept[0].unused_turns == 1
    refused = [(row.line, row.reason) for row in rows if not isinstance(row, CorpusRow)]
    assert refused == [(4, "a message without the one that it replies to (parent_id)")]


@pytest.mark.parametrize("field", ["message_tree_id", "message_id", "parent_id"])
@pytest.mark.parametrize("value", [["t"], {"id": "t"}, 1.5])
def test_a_message_whose_id_is_no_id_is_refused_and_the_others_are_not(field, value):
    root = {"message_tree_id": "t", "message_id": "t", "parent_id": None, "text": "q", "role": "prompter"}
    answer = {**root, "message_id": "a", "parent_id": "t", "text": "a", "role": "assistant"}
    records = [root, answer, {**answer, field: value}]
    kept, refused = prepare_rows([RawRow("f", n, record) for n, record in enumerate(records, 1)])
    kept, refused = (kept, refused) if isinstance(kept, CorpusRow) else (refused, kept)
    assert (kept.response, refused.line) == ("a", 3)
    assert refused.reason.startswith(f"{field} is ")


FRENCH = ["s: Speak French", "first?", "a: a", "and now?"]
RIGHT = {
    "dolly": (["When did it begin?\n\nIt began in 2000."], "2000"),
    "openorca": (["s: You are terse.", "Two and two?"], "Four."),
    "metamath": (["2+2?"], "4"),
    "trl lists": (["Q?"], "A"),
    "preference lists": (["Q?"], "good"),
    "alpaca with history": (FRENCH, "b"),
    "sharegpt ends with the user": (["q1"], "a1"),
    "sharegpt with another name": QA,
    "sharegpt, system beside": SYSTEM_QA,
    "four turns": (["q1", "a: a1", "q2"], "a2"),
    "a turn that is not to be learnt": (["q", "a: a bad answer", "q2"], "good"),
    "reasoning beside the answer": (["2+2"], "4"),
    "content parts": QA,
    "messages as text": QA,
    "no input (pandas)": QA,
}
NOT_USED = {"reasoning beside the answer": ("reasoning_content",)}


@pytest.mark.skipif(not CASES.is_file(), reason="the shared cases are not available")
@pytest.mark.parametrize("name", [*RIGHT, "text and a tool call"])
def test_the_shared_cases_come_out_right(name):
    cases = {case["name"]: case["record"] for case in map(json.loads, CASES.read_text().splitlines())}
    assert cases.keys() == {*RIGHT, "text and a tool call"}
    (row,) = prepare_rows([RawRow("data.jsonl", 1, cases[name])])
    if name in RIGHT:
        assert shown(row) == RIGHT[name]
        assert row.unused_fields == NOT_USED.get(name, ())
    else:
        assert row.reason.startswith("the response is a tool call")
