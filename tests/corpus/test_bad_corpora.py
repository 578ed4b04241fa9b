"""Bad rows are quarantined with a reason, and their neighbours are kept; see also test_bad_files."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profuser.errors import UserError
from tests.corpus.prepared import FIRST, LAST, prepared, record, talk

MANY = 100_000
LARGER = "larger than corpus.max_row_bytes=1000000"
# JSON values. Each is placed between two good records, in JSONL, in gzip and in a list.
RECORDS = {
    "an unknown column": (record(text="a"), "no question with an answer (fields: text)"),
    "no column at all": (b"{}", "no question with an answer (fields: none)"),
    "a number for text": (record(question="q", answer=3), "answer is a number, expected text"),
    "a list for text": (record(question=["q"], answer="a"), "question is a list, expected text"),
    "an object for text": (record(question="q", answer={"text": "a"}), "answer is an object, expected text"),
    "true for text": (record(question="q", answer=True), "answer is a boolean, expected text"),
    "null": (record(question="q", answer=None), "answer is null, expected text"),
    "an empty response": (record(question="q", answer=""), "answer is empty"),
    "whitespace only": (record(question=" \n\t\u00a0\u3000", answer="a"), "question is empty"),
    "ten megabytes of spaces": (record(question="q", answer=" " * 10_000_000), "answer is empty"),
    "an unpaired surrogate": (rb'{"question": "q", "answer": "\ud83d"}', "answer has an unpaired surrogate"),
    "an unpaired surrogate in a field's name": (
        rb'{"\ud800\n": "q"}',
        r"no question with an answer (fields: '\ud800\n')",
    ),
    "a NUL character": (rb'{"question": "q\u0000", "answer": "a"}', "question has a NUL character"),
    "NaN": (b'{"question": "q", "answer": NaN}', "answer is a number, expected text"),
    "minus infinity": (b'{"question": -Infinity, "answer": "a"}', "question is a number, expected text"),
    "a large number": (b'{"question": "q", "answer": 1e999}', "answer is a number, expected text"),
    "very many fields": (
        record(**{f"f{n}": n for n in range(MANY)}),
        "no question with an answer (fields: f0, f1, f10, f100, f1000, f10000, f10001, f10002, ...)",
    ),
    "a row of ten megabytes": (
        record(question="q", answer="a b " * 2_500_000),
        f"{LARGER} (10000000 bytes)",
    ),
    "a word of a million letters": (record(question="q", answer="a" * 1_000_000), f"{LARGER} (1000001 bytes)"),
    "a duplicate": (FIRST, "duplicate of ..."),
    "a duplicate except for whitespace": (record(question=" Say 1.\n", answer="1 "), "duplicate of ..."),
    "text": (b'"text"', "a record must be an object (this is text)"),
    "a list": (b"[1, 2]", "a record must be an object (this is a list)"),
    "a record in a list": (b"[" + LAST + b"]", "a record must be an object (this is a list)"),
    "a null": (b"null", "a record must be an object (this is null)"),
    "a NaN": (b"NaN", "a record must be an object (this is a number)"),
    "a huge whole number": (b'{"n": ' + b"9" * 5000 + b"}", "not readable as JSON (a number has thousands of digits)"),
    "a huge whole number alone": (b"9" * 5000, "not readable as JSON (a number has thousands of digits)"),
    "nested too deeply": (b"[" * MANY + rb'"\"]"' + b"]" * MANY, "not readable as JSON (it is nested too deeply)"),
    "Latin-1": ('{"question": "caf\u00e9", "answer": "a"}'.encode("latin-1"), "not UTF-8..."),
    "half a character": (record(question="q", answer="\u6f22").replace(b"\xbc", b""), "not UTF-8..."),
    "a surrogate as bytes": (b'{"question": "\xed\xa0\x80", "answer": "a"}', "not UTF-8..."),
}
# Conversations, each placed between two good ones.
TALKS = {
    "a tool's turn": (
        talk(("user", "a"), ("tool", "b"), ("assistant", "c")),
        "a tool's result follows no tool call (user, tool, assistant)",
    ),
    "a role with a line end": (talk(("us\ner", "a"), ("assistant", "c")), r"unknown role 'us\ner' (turn 1)"),
    "a role of a million letters": (talk(("r" * 1_000_000, "a")), "unknown role '" + "r" * 39 + " (turn 1)"),
    "the assistant first": (
        talk(("assistant", "a"), ("user", "b"), ("assistant", "c")),
        "messages do not start with a user turn (assistant, user, assistant)",
    ),
    "two assistants in a row": (
        talk(("user", "a"), ("assistant", "b"), ("assistant", "c")),
        "user and assistant do not alternate (user, assistant, assistant)",
    ),
    "no assistant": (talk(("user", "a"), ("user", "b")), "no assistant turn (of 2 turns)"),
    "the system last": (
        talk(("user", "a"), ("assistant", "b"), ("system", "c")),
        "messages end with a system turn",
    ),
    "an empty turn": (talk(("user", "a"), ("assistant", " ")), "content is empty (turn 2)"),
    "no turns": (talk(), "no assistant turn (of 0 turns)"),
    "very many turns": (talk(*[("user", "a")] * 10_000), "no assistant turn (of 10000 turns)"),
}
# Faults that only a line can have.
LINES = {
    "Latin-1, with its position": (b'{"a": "\xff"}', "not UTF-8 (at byte 7 of the line)"),
    "prose": (b"not json", "not JSON (Expecting value at column 1)"),
    "Python for JSON": (b"{'question': 'q', 'answer': 'a'}", "not JSON (Expecting property name..."),
    "NUL bytes": (b"\x00" * 512, "not JSON (Expecting value at column 1)"),
    "a NUL byte in text": (b'{"question": "q\x00", "answer": "a"}', "not JSON (Invalid control character..."),
    "a tab in text": (b'{"question": "q\tq", "answer": "a"}', "not JSON (Invalid control character..."),
    "a byte order mark": (b"\xef\xbb\xbf" + record(question="q", answer="a"), "not JSON (Unexpected UTF-8 BOM..."),
    "UTF-16": ('{"question": "q"}'.encode("utf-16"), "not UTF-8 (at byte 0 of the line)"),
    "a line cut in its text": (LAST[:20], "not JSON, the line ends inside its record (Unterminated string..."),
    "a line cut between fields": (b'{"a": 1,', "not JSON, the line ends inside its record (Expecting property name..."),
    "two records on a line": (b'{"a": 1} {"b": 2}', "more than one JSON value on the line"),
    "lines that end with CR": (
        b'{"a": 1}\r{"b": 2}',
        "more than one JSON value on the line (the lines end with CR only; save the file with LF)",
    ),
    "a list without its brackets": (b'{"a": 1}, ', "a comma after the record"),
    "brackets without end": (b"[" * MANY, "not readable as JSON (it is nested too deeply)"),
    "a line of 65 MiB": (b"[" + b"1," * (65 << 19), "longer than 64 MiB (expected one record per line)"),
}
# The second of three rows of a table; the others are good.
CELLS = {
    "a null question": ({"question": None, "answer": "a"}, "question is null, expected text"),
    "an empty answer": ({"question": "q", "answer": ""}, "answer is empty"),
    "a row of another table": ({"text": "t"}, "question is null, expected text"),
    "a NUL character": ({"question": "q", "answer": "a\x00"}, "answer has a NUL character"),
    "two megabytes": ({"question": "q", "answer": "a" * 2_000_000}, f"{LARGER} (2000001 bytes)"),
    "a duplicate": ({"question": "Say 1.", "answer": "1"}, "duplicate of ..."),
    "an unknown role": ({"messages": [{"role": "judge", "content": "a"}]}, "unknown role 'judge' (turn 1)"),
    "no turns": ({"messages": []}, "no assistant turn (of 0 turns)"),
}
CONTAINERS = {
    "data.jsonl": b"\n".join,
    "data.jsonl.gz": lambda rows: gzip.compress(b"\n".join(rows), 1),
    "data.json": lambda rows: b"[\n" + b",\n".join(rows) + b"\n]",
}


def check_quarantined(file, reason):
    """Checks that the second of three rows is refused for the reason (its beginning, if it ends in three dots).

    The other two are kept; under the default fraction the corpus is refused, and the message names the row.
    """
    kept, (refused,) = prepared(file, 1.0)
    assert [row.response for row in kept] == ["1", "2"]
    assert refused.line == 2
    assert refused.reason == reason or (reason.endswith("...") and refused.reason.startswith(reason[:-3]))
    with pytest.raises(UserError) as caught:
        prepared(file)
    expected = (
        f"corpus {file}: 1 of 3 rows (33.3 %) were refused, more than corpus.max_quarantined_fraction=0.05; the first: "
    )
    assert str(caught.value) == f"{expected}{refused.unit} 2: {refused.reason}"
    return refused


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", RECORDS)
def test_a_bad_record_is_quarantined_between_its_neighbours(tmp_path, kind, container):
    bad, reason = RECORDS[kind]
    (tmp_path / container).write_bytes(CONTAINERS[container]([FIRST, bad, LAST]))
    assert check_quarantined(tmp_path / container, reason).excerpt


@pytest.mark.parametrize("kind", TALKS)
def test_a_bad_conversation_is_quarantined_between_its_neighbours(tmp_path, kind):
    bad, reason = TALKS[kind]
    first, last = (talk(("user", "q"), ("assistant", answer)) for answer in "12")
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([first, bad, last]))
    assert check_quarantined(tmp_path / "data.jsonl", reason).excerpt


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_line_is_quarantined_between_its_neighbours(tmp_path, kind):
    bad, reason = LINES[kind]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([FIRST, bad, LAST]))
    assert check_quarantined(tmp_path / "data.jsonl", reason).excerpt


@pytest.mark.parametrize("kind", CELLS)
def test_a_bad_row_of_a_table_is_quarantined_between_its_neighbours(tmp_path, kind):
    bad, reason = CELLS[kind]
    good = [{"question": f"Say {n}.", "answer": f"{n}"} for n in (1, 2)]
    if "messages" in bad:
        good = [
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{n}"}]} for n in (1, 2)
        ]
    # A table's columns are those of its first row.
    first = good[0] | dict.fromkeys(bad.keys() - good[0].keys())
    pq.write_table(pa.Table.from_pylist([first, bad, good[1]]), tmp_path / "data.parquet")
    assert check_quarantined(tmp_path / "data.parquet", reason).excerpt


def broken_text():
    sound = pa.array([b"Say 1.", b"\xff\xfe", b"Say 2."], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, sound.buffers())


COLUMNS = {
    "text that is not UTF-8": ({"question": broken_text()}, "not UTF-8"),
    "a date past the calendar": (
        {"day": pa.array([0, 2**62, 0], pa.timestamp("us"))},
        "a value cannot be read (date value out of range)",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_bad_value_of_a_column_quarantines_only_its_row(tmp_path, kind):
    columns, reason = COLUMNS[kind]
    good = {"question": ["Say 1.", "q", "Say 2."], "answer": ["1", "a", "2"]}
    pq.write_table(pa.table(good | columns), tmp_path / "data.parquet")
    check_quarantined(tmp_path / "data.parquet", reason)


CSV_ROWS = {
    "a value too many": (b"q,a,more", "another number of values than of columns (3 and 2)"),
    "a value too few": (b"q", "another number of values than of columns (1 and 2)"),
    "no answer": (b"q,", "answer is empty"),
    "a quote inside quotes": (b'"q"x,a', "not CSV (',' expected after '\"')"),
    "Latin-1": ("caf\u00e9,a".encode("latin-1"), "not UTF-8"),
}


@pytest.mark.parametrize("kind", CSV_ROWS)
def test_a_bad_row_of_csv_is_quarantined_between_its_neighbours(tmp_path, kind):
    bad, reason = CSV_ROWS[kind]
    (tmp_path / "data.csv").write_bytes(b"\n".join([b"question,answer", b"Say 1.,1", bad, b"Say 2.,2"]))
    kept, (refused,) = prepared(tmp_path / "data.csv", 1.0)
    assert [row.response for row in kept] == ["1", "2"]
    assert (refused.line, refused.reason) == (3, reason)
