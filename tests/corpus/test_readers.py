"""Every container gives the same records; what breaks one row leaves the others be, and what breaks a file is one line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profuser.corpus import read_corpus
from profuser.errors import UserError

RECORDS = [{"question": f"What is {n}?", "answer": f"It is {n}, é漢."} for n in range(5)]


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def parquet(records, file):
    pq.write_table(pa.Table.from_pylist(records), file)
    return file.read_bytes()


CONTAINERS = {
    "list.json": lambda _: json.dumps(RECORDS, indent=1).encode(),
    "list with a byte order mark.json": lambda _: b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
    "list.json.gz": lambda _: gzip.compress(json.dumps(RECORDS).encode()),
    "list without .gz.json": lambda _: gzip.compress(json.dumps(RECORDS).encode()),
    "list in .jsonl.jsonl": lambda _: b"\n " + json.dumps(RECORDS).encode() + b"\n",
    "lines.jsonl": lambda _: jsonl(RECORDS),
    "lines with a byte order mark.jsonl": lambda _: b"\xef\xbb\xbf" + jsonl(RECORDS),
    "lines with a byte order mark.jsonl.gz": lambda _: gzip.compress(b"\xef\xbb\xbf" + jsonl(RECORDS)),
    "lines with blank ones.jsonl": lambda _: b"\n" + jsonl(RECORDS).replace(b"\n", b"\r\n\n"),
    "lines without the last end.jsonl": lambda _: jsonl(RECORDS).rstrip(b"\n"),
    "lines.jsonl.gz": lambda _: gzip.compress(jsonl(RECORDS)),
    "two gzips on end.jsonl.gz": lambda _: gzip.compress(jsonl(RECORDS[:2])) + gzip.compress(jsonl(RECORDS[2:])),
    "a gzip that does not say so.jsonl": lambda _: gzip.compress(jsonl(RECORDS)),
    "lines in a .json.json": lambda _: jsonl(RECORDS),
    "table.parquet": lambda file: parquet(RECORDS, file),
    "table without its ending": lambda file: parquet(RECORDS, file),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_records(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(CONTAINERS[name](file))
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows] == RECORDS
    assert {row.file for row in rows} == {str(file)}


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"\n" + jsonl(RECORDS[:1]) + b"\n\n" + jsonl(RECORDS[1:2]))
    assert [(row.line, row.unit) for row in read_corpus(str(file))] == [(2, "line"), (5, "line")]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"not json", "not JSON"),
        (b'{"a": 1} {"b": 2}', "more than one JSON value"),
        (b'{"a": "\xff"}', "not UTF-8 (at byte 7 of the line)"),
        (b'{"a": 1,', "not JSON (Expecting property name"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b"NaN", "a record must be an object (this is a number)"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON (Unexpected UTF-8 BOM"),
        (b"[1, 2]", "a record must be an object (this is a list)"),
        (b"null", "a record must be an object (this is null)"),
        (b'"text"', "a record must be an object (this is text)"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_broken_line_is_a_fault_of_its_row_alone(tmp_path, line, fault):
    file = tmp_path / "data.jsonl"
    file.write_bytes(jsonl(RECORDS[:2]) + line + b"\n" + jsonl(RECORDS[2:]))
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows if row.fault is None] == RECORDS
    (broken,) = (row for row in rows if row.fault)
    assert broken.line == 3
    assert fault in broken.fault
    assert "\n" not in broken.fault


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (b'{"question": "\xff", "answer": "a"}', "not UTF-8"),
        (b'{"question": "\xed\xa0\x80", "answer": "a"}', "not UTF-8"),
        (b'"text"', "a record must be an object (this is text)"),
        (b"[1]", "a record must be an object (this is a list)"),
        (b"NaN", "a record must be an object (this is a number)"),
    ],
)
def test_a_broken_record_of_a_list_spoils_no_other(tmp_path, broken, fault):
    file = tmp_path / "data.json"
    texts = [json.dumps(record).encode() for record in RECORDS]
    file.write_bytes(b"[\n" + b",\n".join([*texts[:2], broken, *texts[2:]]) + b"\n]")
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows if row.fault is None] == RECORDS
    assert [(row.line, row.unit, row.fault) for row in rows if row.fault] == [(3, "record", fault)]


def test_a_parquet_value_that_is_not_utf8_spoils_no_other_row(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": broken, "response": ["a", "b", "c"]}), tmp_path / "data.parquet")
    rows = list(read_corpus(str(tmp_path / "data.parquet")))
    assert [row.fault for row in rows] == [None, "not UTF-8", None]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl"])
def test_a_file_cut_in_a_line_gives_the_rows_before_it_and_says_so(tmp_path, name):
    records = [{"question": f"{n}" * 50, "answer": f"{n * 7919}"} for n in range(2000)]
    data = gzip.compress(jsonl(records)) if name.endswith(".gz") else jsonl(records)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    rows = list(read_corpus(str(tmp_path / name)))
    assert [row.record for row in rows[:-1]] == records[: len(rows) - 1]
    assert len(rows) > 100
    assert "cut here" in rows[-1].fault


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("cut.json", json.dumps(RECORDS).encode()[:-20], "broken or cut"),
        ("cut.json.gz", gzip.compress(json.dumps(RECORDS).encode())[:-30], "cut short"),
        ("cut between.json", json.dumps(RECORDS[:2]).encode()[:-1], "the end of the file after record 2"),
        ("cut at once.json", b"[", "record 1 of the JSON list is broken or cut"),
        ("no comma.json", b'[{"a": 1} {"b": 2}]', "'{' after record 1"),
        ("two.json", json.dumps(RECORDS).encode() * 2, "more text after the JSON list"),
        ("pretty.json", json.dumps(RECORDS[0], indent=2).encode(), "goes on over several lines"),
        ("wide.json", json.dumps(RECORDS).encode("utf-16"), "UTF-16"),
        ("wide.jsonl.gz", gzip.compress(jsonl(RECORDS).decode().encode("utf-16")), "UTF-16"),
        ("prose.jsonl", b"Once upon a time", "no JSON list, JSONL or Parquet file"),
        ("none.parquet", b"PAR1 nothing", "not a readable Parquet file"),
        ("empty.parquet", b"", "not a readable Parquet file"),
        ("none.jsonl.gz", b"no gzip at all", "cannot be read"),
        ("damaged.jsonl.gz", gzip.compress(jsonl(RECORDS))[:-8] + bytes(8), "cannot be read: CRC"),
        ("zip.jsonl", b"PK\x03\x04", "no JSON list, JSONL or Parquet file"),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_corpus(str(tmp_path / name)))
    assert name in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file_is_one_line_with_its_name(tmp_path):
    data = parquet(RECORDS, tmp_path / "data.parquet")
    (tmp_path / "data.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"data\.parquet: not a readable Parquet file.*after record 0") as caught:
        list(read_corpus(str(tmp_path / "data.parquet")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jsonl", b""),
        ("empty.json", b""),
        ("empty.json.gz", b""),
        ("empty inside.jsonl.gz", gzip.compress(b"")),
        ("blank.jsonl", b" \n\r\n\t"),
        ("mark.jsonl", b"\xef\xbb\xbf"),
        ("list.json", b"[ ]\n"),
    ],
)
def test_an_empty_file_has_no_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert list(read_corpus(str(tmp_path / name))) == []


def test_a_table_of_conversations_reads_as_its_json(tmp_path):
    records = [{"messages": [{"role": "user", "content": f"{n}"}], "kind": None} for n in range(3)]
    parquet(records, tmp_path / "data.parquet")
    rows = list(read_corpus(str(tmp_path / "data.parquet")))
    assert [row.record for row in rows] == records
    assert [(row.line, row.unit) for row in rows] == [(1, "record"), (2, "record"), (3, "record")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    junk=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=4), packed=st.booleans()
)
def test_good_lines_survive_any_junk_between_them(tmp_path, junk, packed):
    lines = jsonl(RECORDS).splitlines(keepends=True)
    data = b"".join(line + b"".join(b"#" + bad + b"\n" for bad in junk) for line in lines)
    (tmp_path / "data.jsonl").write_bytes(gzip.compress(data) if packed else data)
    rows = list(read_corpus(str(tmp_path / "data.jsonl")))
    assert [row.record for row in rows if row.fault is None] == RECORDS
    assert [row.line for row in rows] == list(range(1, len(RECORDS) * (1 + len(junk)) + 1))


PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b"1", b"\n", b" ", b"\xff", b"NaN", b"\xef\xbb\xbf"]
)
GOOD = st.sampled_from([json.dumps(record).encode() + b"\n" for record in RECORDS])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(PIECES | GOOD, max_size=12).map(b"".join) | st.binary(max_size=30),
    cut=st.integers(0, 40),
    packed=st.booleans(),
    name=st.sampled_from(["data.jsonl", "data.json.gz"]),
)
def test_any_bytes_give_rows_or_one_line_that_names_the_file(tmp_path, data, cut, packed, name):
    data = gzip.compress(data)[: -cut or None] if packed else data
    (tmp_path / name).write_bytes(data)
    rows, failure = [], None
    try:
        rows.extend(read_corpus(str(tmp_path / name)))
    except UserError as error:
        failure = str(error)
    assert failure is None or (failure.startswith(str(tmp_path / name)) and "\n" not in failure)
    assert all((row.record is None) == bool(row.fault) for row in rows)
    assert [row.line for row in rows] == sorted({row.line for row in rows})
