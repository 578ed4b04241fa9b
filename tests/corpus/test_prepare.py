"""Record shapes, stable ids, duplicates, quarantine, and the held-out split."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.corpus import (
    CorpusRow,
    Message,
    QuarantinedRow,
    RowCounts,
    check_quarantine,
    choose_heldout,
    prepare_rows,
    read_corpus,
)
from profuser.corpus.rows import RawRow
from profuser.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"


BROKEN = ("{", "[]", '{"question": "a"}', "null", '{"question": "a", "answer": 1}')


def raw(records):
    return [RawRow("data.jsonl", line, record) for line, record in enumerate(records, 1)]


def heldout(rows, heldout_rows, seed):
    return choose_heldout([row.row_id for row in rows], heldout_rows, seed)


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


def test_row_ids_do_not_change_between_versions():
    # Artifacts and held-out splits of earlier runs depend on it.
    (row,) = prepare_rows(raw([SAME["alpaca"]]))
    assert row.row_id == "b99e52b844002c79"


@pytest.mark.parametrize(
    "other",
    [
        {"question": "Add 1 and 2", "answer": "3"},
        {"question": "Add 1 and 2.", "answer": "3."},
        {"question": "Add 1  and 2.", "answer": "3"},
        {"messages": turns(("system", "Add 1 and 2."), ("user", "Add 1 and 2."), ("assistant", "3"))},
        {"messages": turns(("user", "Add 1 and 2."), ("assistant", "3"), ("user", "Add 1 and 2."), ("assistant", "3"))},
    ],
)
def test_other_content_has_another_id(other):
    first, second = (next(prepare_rows(raw([record]))) for record in (SAME["alpaca"], other))
    assert first.row_id != second.row_id


def test_the_same_content_has_the_same_ids_and_the_same_heldout_rows_in_every_container(tmp_path):
    records = [{"instruction": f"Say {n}, é漢.", "input": "", "output": f"{n}"} for n in range(30)]
    chats = [{"messages": turns(("user", f"Say {n}, é漢."), ("assistant", f"{n}"))} for n in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in reversed(chats)))
    (tmp_path / "c.jsonl").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "e.parquet")
    kept = []
    for name in ("a.json", "b.jsonl", "c.jsonl", "d.parquet", "e.parquet"):
        rows = list(prepare_rows(read_corpus(str(tmp_path / name))))
        assert len({row.row_id for row in rows if isinstance(row, CorpusRow)}) == 30, name
        kept.append(heldout(rows, 10, seed=0))
    assert all(ids == kept[0] for ids in kept)
    records_again = [*prepare_rows(read_corpus(str(tmp_path / "[ad].*")))][30:]
    assert [row.reason for row in records_again] == [f"duplicate of {tmp_path / 'a.json'}:{n}" for n in range(1, 31)]


def test_auto_uses_the_first_usable_shape_and_refuses_the_others():
    records = [{"nothing": 1}, SAME["alpaca"], {"question": "a", "answer": "b"}, {"instruction": "x", "output": "y"}]
    rows = list(prepare_rows(raw(records)))
    assert [isinstance(row, CorpusRow) for row in rows] == [False, True, False, True]
    assert rows[2].reason == "no field 'instruction' (fields: answer, question)"


def test_a_named_shape_is_the_only_one_that_is_read():
    both = {**SAME["question, answer"], "instruction": "x", "output": "y"}
    assert [row.response for row in prepare_rows(raw([both]), "alpaca")] == ["y"]
    assert [row.response for row in prepare_rows(raw([both]), "qa")] == ["3"]
    (row,) = prepare_rows(raw([SAME["alpaca"]]), "qa")
    assert row.reason.startswith("no question with an answer")


@pytest.mark.parametrize(("limit", "is_taken"), [(8, True), (7, False)])
def test_the_size_of_a_row_is_counted_in_bytes_of_prompt_and_response(limit, is_taken):
    (row,) = prepare_rows(raw([{"question": "é漢", "answer": " abc ", "more": "x" * 99}]), max_row_bytes=limit)
    assert isinstance(row, CorpusRow) == is_taken
    if not is_taken:
        assert row.reason == "larger than corpus.max_row_bytes=7 (8 bytes)"


def test_refused_rows_are_counted_by_reason_whatever_their_details():
    summary = RowCounts()
    records = [
        SAME["alpaca"],
        SAME["alpaca"],
        {"a": 1},
        {"b": 1},
        {"instruction": "x" * 99, "output": "y"},
        SAME["alpaca"],
    ]
    for row in prepare_rows(raw(records), max_row_bytes=60):
        summary.add(row)
    assert summary.reasons == {"duplicate": 2, "no field 'instruction'": 2, "larger than corpus.max_row_bytes=60": 1}
    assert (summary.first.line, summary.accepted, summary.read) == (2, 1, 6)


def test_a_duplicate_names_its_first_occurrence():
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
    summary, rows = RowCounts(), list(prepare_rows(read_corpus(str(tmp_path / "data.jsonl"))))
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
    [([], "it contains no records"), ([{"a": 1}], "1 read, 1 refused.*known shapes: messages")],
)
def test_a_corpus_without_a_usable_row_is_refused(records, expected):
    summary = RowCounts()
    for row in prepare_rows(raw(records)):
        summary.add(row)
    with pytest.raises(UserError, match=expected):
        check_quarantine("data.jsonl", summary, 1.0)


def test_a_category_is_text_or_none():
    values = ["math", 3, None, float("nan"), " ", True, " a b\n"]
    rows = list(
        prepare_rows(
            raw([{"question": f"{n}", "answer": "a", "kind": v} for n, v in enumerate(values)]), "auto", "kind"
        )
    )
    assert [row.category for row in rows] == ["math", "3", None, None, None, "True", "a b"]


def test_a_row_may_lack_its_category_but_not_have_one_that_is_no_text():
    absent, wrong = prepare_rows(
        raw([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d", "kind": ["x"]}]), category_field="kind"
    )
    assert absent.category is None
    assert wrong.reason == "kind is a list, expected text"


@pytest.fixture(scope="module")
def forty():
    return list(prepare_rows(raw([{"question": f"{n}", "answer": "a"} for n in range(40)])))


@settings(max_examples=30)
@given(order=st.permutations(range(40)), number=st.integers(0, 39), seed=st.integers(0, 3))
def test_the_heldout_rows_are_the_same_whatever_the_order(forty, order, number, seed):
    held = heldout(forty, number, seed)
    assert len(held) == number
    assert held < {row.row_id for row in forty}
    assert heldout([forty[index] for index in order], number, seed) == held


def test_more_heldout_rows_include_the_fewer_and_another_seed_gives_another_choice(forty):
    assert heldout(forty, 10, 1) != heldout(forty, 10, 0) < heldout(forty, 20, 0)


def test_the_heldout_rows_do_not_change_between_versions(forty):
    # Rows held out before an update must not be trained on after it.
    assert [row.source_line for row in forty if row.row_id in heldout(forty, 4, 0)] == [5, 11, 19, 30]


def test_holding_out_all_rows_is_refused():
    rows = list(prepare_rows(raw([{"question": f"{n}", "answer": "a"} for n in range(3)])))
    with pytest.raises(UserError, match="none is left to train on; lower"):
        heldout(rows, 3, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not available")
@pytest.mark.parametrize(("name", "accepted"), [("alpaca_5000.json", 0.99), ("gsm8k_train.jsonl", 0.99)])
def test_real_corpora_lose_no_row(name, accepted):
    records = list(read_corpus(str(REAL / name)))
    rows = list(prepare_rows(records))
    assert len(rows) == len(records) > 1000
    assert sum(isinstance(row, CorpusRow) for row in rows) > accepted * len(rows)
