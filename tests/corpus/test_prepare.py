"""Shapes of records, stable ids, duplicates, quarantine, and the held-out split."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.corpus import (
    CorpusRow,
    Message,
    QuarantinedRow,
    Summary,
    check_quarantine,
    prepare_rows,
    read_corpus,
    split_heldout,
)
from profuser.corpus.readers import RawRow
from profuser.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"


BROKEN = ("{", "[]", '{"question": "a"}', "null", '{"question": "a", "answer": 1}')


def raw(records):
    return [RawRow("data.jsonl", line, record) for line, record in enumerate(records, 1)]


def turns(*pairs, role="role", text="content"):
    return [{role: who, text: what} for who, what in pairs]


SAME = {
    "alpaca": {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
    "alpaca without input": {"instruction": "Add 1 and 2.", "output": "3"},
    "alpaca with null input": {"instruction": "Add 1 and 2.", "input": None, "output": "3\n"},
    "question, answer": {"question": "Add 1 and 2.", "answer": "3"},
    "prompt, response": {"prompt": "Add 1 and 2.", "response": "3"},
    "prompt, completion": {"prompt": "Add 1 and 2.", "completion": "3"},
    "messages": {"messages": turns(("user", "Add 1 and 2."), ("assistant", "3"))},
    "sharegpt": {"conversations": turns(("human", "Add 1 and 2."), ("gpt", "3"), role="from", text="value")},
}


def test_the_same_content_has_the_same_id_in_every_shape():
    rows = [next(prepare_rows(raw([record]))) for record in SAME.values()]
    assert all(isinstance(row, CorpusRow) for row in rows), rows
    assert len({row.row_id for row in rows}) == 1
    assert {row.messages for row in rows} == {(Message("user", "Add 1 and 2."),)}
    assert {row.response for row in rows} == {"3"}


def test_alpacas_input_follows_its_instruction():
    (row,) = prepare_rows(raw([{"instruction": "Sort.", "input": "b a", "output": "a b"}]))
    assert row.messages == (Message("user", "Sort.\n\nb a"),)


def test_a_conversation_keeps_its_system_text_and_ends_with_the_response():
    pairs = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    (row,) = prepare_rows(raw([{"messages": turns(*pairs)}]))
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user"]
    assert row.response == "Ciao"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"something": "else"}, "no known shape (fields: something)"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "  ", "output": "b"}, "instruction is empty"),
        ({"instruction": 3, "output": "b"}, "instruction is a number, expected text"),
        ({"question": "a", "answer": None}, "answer is null, expected text"),
        ({"question": "a", "answer": "b\x00"}, "NUL"),
        ({"question": "a", "answer": "\ud800"}, "surrogate"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": "text"}, "expected a list of turns"),
        ({"messages": turns(("user", "a"))}, "no assistant turn"),
        ({"messages": turns(("user", "a"), ("assistant", "b"), ("user", "c"))}, "end with a user turn"),
        ({"messages": turns(("assistant", "b"))}, "do not start with a user turn"),
        ({"messages": turns(("user", "a"), ("user", "b"), ("assistant", "c"))}, "do not take turns"),
        ({"messages": turns(("robot", "a"), ("assistant", "b"))}, "unknown role 'robot'"),
        ({"question": "a" * 2000, "answer": "b"}, "larger than corpus.max_row_bytes=1000"),
    ],
)
def test_an_unusable_row_goes_to_quarantine_with_its_reason_and_the_next_is_taken(record, reason):
    rows = list(prepare_rows(raw([record, SAME["question, answer"]]), max_row_bytes=1000))
    assert isinstance(rows[0], QuarantinedRow)
    assert reason in rows[0].reason
    assert (rows[0].file, rows[0].line) == ("data.jsonl", 1)
    assert rows[0].excerpt
    assert isinstance(rows[1], CorpusRow)


def test_a_duplicate_names_the_first_of_its_kind():
    first, other, again = prepare_rows(raw([SAME["alpaca"], {"instruction": "x", "output": "y"}, SAME["alpaca"]]))
    assert isinstance(first, CorpusRow)
    assert isinstance(other, CorpusRow)
    assert again.reason == "duplicate of data.jsonl:1"


def test_ten_broken_rows_among_good_ones_are_counted_and_the_rest_is_kept(tmp_path):
    good = [{"question": f"What is {n}?", "answer": f"{n}"} for n in range(90)]
    lines = [json.dumps(record) for record in good]
    for number in range(10):
        lines.insert(9 * number + 4, BROKEN[number % len(BROKEN)])
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    summary, rows = Summary(), list(prepare_rows(read_corpus(str(tmp_path / "data.jsonl"))))
    for row in rows:
        summary.add(row)
    assert (summary.accepted, summary.quarantined, summary.read) == (90, 10, 100)
    refused = [row.line for row in rows if isinstance(row, QuarantinedRow)]
    assert refused == [9 * number + 5 for number in range(10)]
    check_quarantine("data.jsonl", summary, 0.1)
    with pytest.raises(UserError, match=r"10 of 100 rows \(10 %\) were refused.*the first: .*line 5") as caught:
        check_quarantine("data.jsonl", summary, 0.09)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("records", "expected"),
    [([], "there is no record in it"), ([{"a": 1}], "1 read, 1 refused.*known shapes: alpaca")],
)
def test_a_corpus_without_a_usable_row_is_refused(records, expected):
    summary = Summary()
    for row in prepare_rows(raw(records)):
        summary.add(row)
    with pytest.raises(UserError, match=expected):
        check_quarantine("data.jsonl", summary, 1.0)


def test_a_category_is_text_or_none():
    values = ["math", 3, None, float("nan"), " "]
    rows = list(
        prepare_rows(
            raw([{"question": f"{n}", "answer": "a", "kind": v} for n, v in enumerate(values)]), "auto", "kind"
        )
    )
    assert [row.category for row in rows] == ["math", "3", None, None, None]


@given(order=st.permutations(range(40)), heldout=st.integers(0, 39), seed=st.integers(0, 3))
def test_the_heldout_rows_are_the_same_whatever_the_order(order, heldout, seed):
    rows = list(prepare_rows(raw([{"question": f"{n}", "answer": "a"} for n in range(40)])))
    rest, held = split_heldout(rows, heldout, seed)
    assert len(held) == heldout
    assert {row.row_id for row in rest} | {row.row_id for row in held} == {row.row_id for row in rows}
    assert not {row.row_id for row in rest} & {row.row_id for row in held}
    _, again = split_heldout([rows[index] for index in order], heldout, seed)
    assert {row.row_id for row in again} == {row.row_id for row in held}


def test_a_split_that_leaves_nothing_is_refused():
    rows = list(prepare_rows(raw([{"question": f"{n}", "answer": "a"} for n in range(3)])))
    with pytest.raises(UserError, match="none is left to learn from; lower"):
        split_heldout(rows, 3, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(("name", "accepted"), [("alpaca_5000.json", 0.99), ("gsm8k_train.jsonl", 0.99)])
def test_real_corpora_lose_no_row(name, accepted):
    records = list(read_corpus(str(REAL / name)))
    rows = list(prepare_rows(records))
    assert len(rows) == len(records) > 1000
    assert sum(isinstance(row, CorpusRow) for row in rows) > accepted * len(rows)
