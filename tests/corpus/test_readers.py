"""Every container gives the same records; what breaks one row leaves the others be, and what breaks a file is one line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
    "lines.jsonl": lambda _: jsonl(RECORDS),
    "lines with blank ones.jsonl": lambda _: b"\n" + jsonl(RECORDS).replace(b"\n", b"\r\n\n"),
    "lines without the last end.jsonl": lambda _: jsonl(RECORDS).rstrip(b"\n"),
    "lines.jsonl.gz": lambda _: gzip.compress(jsonl(RECORDS)),
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
        (b'{"a": "\xff"}', "not UTF-8"),
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


def test_a_record_of_a_list_that_is_not_utf8_spoils_no_other(tmp_path):
    file = tmp_path / "data.json"
    texts = [json.dumps(record).encode() for record in RECORDS]
    file.write_bytes(b"[" + b",".join([*texts[:2], b'{"question": "\xff", "answer": "a"}', *texts[2:]]) + b"]")
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows if row.fault is None] == RECORDS
    assert [(row.line, row.fault) for row in rows if row.fault] == [(3, "not UTF-8")]


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
        ("two.json", json.dumps(RECORDS).encode() * 2, "more text after the JSON list"),
        ("pretty.json", json.dumps(RECORDS[0], indent=2).encode(), "goes on over several lines"),
        ("wide.json", json.dumps(RECORDS).encode("utf-16"), "UTF-16"),
        ("prose.jsonl", b"Once upon a time", "no JSON list, JSONL or Parquet file"),
        ("none.parquet", b"PAR1 nothing", "not a readable Parquet file"),
        ("none.jsonl.gz", b"no gzip at all", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_corpus(str(tmp_path / name)))
    assert name in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert list(read_corpus(str(tmp_path / name))) == []


def test_a_folder_and_a_glob_give_all_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.jsonl").write_bytes(jsonl(RECORDS[1:3]))
    (tmp_path / "a.json").write_text(json.dumps(RECORDS[:1]))
    (tmp_path / "deep" / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(RECORDS[3:])))
    (tmp_path / "notes.txt").write_text("no corpus")
    (tmp_path / ".hidden.jsonl").write_text("no corpus")
    assert [row.record for row in read_corpus(str(tmp_path))] == RECORDS
    assert [row.record for row in read_corpus(str(tmp_path / "*.json*"))] == RECORDS[:3]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("nowhere.jsonl", "no such file or folder"),
        ("nothing-*.jsonl", "matches no file"),
        ("*.txt", "no corpus file"),
        (".", "no corpus file"),
        ("", "corpus.path is empty"),
        ("ftp://host/data.jsonl", "copy it here"),
    ],
)
def test_a_place_without_a_corpus_is_one_line(tmp_path, monkeypatch, location, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no corpus")
    with pytest.raises(UserError, match=expected) as caught:
        list(read_corpus(location))
    assert "\n" not in str(caught.value)
