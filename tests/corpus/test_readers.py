"""Every container yields the same records; a bad row does not affect the others, and a bad file is one line."""

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
    "lines without a final newline.jsonl": lambda _: jsonl(RECORDS).rstrip(b"\n"),
    "lines.jsonl.gz": lambda _: gzip.compress(jsonl(RECORDS)),
    "two gzips in a row.jsonl.gz": lambda _: gzip.compress(jsonl(RECORDS[:2])) + gzip.compress(jsonl(RECORDS[2:])),
    "a gzip without .gz.jsonl": lambda _: gzip.compress(jsonl(RECORDS)),
    "lines named .gz.jsonl.gz": lambda _: jsonl(RECORDS),
    "lines in a .json.json": lambda _: jsonl(RECORDS),
    "table.parquet": lambda file: parquet(RECORDS, file),
    "table without its ending": lambda file: parquet(RECORDS, file),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_yields_the_same_records(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(CONTAINERS[name](file))
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows] == RECORDS
    assert {row.file for row in rows} == {str(file)}


def test_lines_are_numbered_as_in_an_editor(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"\n" + jsonl(RECORDS[:1]) + b"\n\n" + jsonl(RECORDS[1:2]))
    assert [(row.line, row.unit) for row in read_corpus(str(file))] == [(2, "line"), (5, "line")]


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (b'{"question": "\xff", "answer": "a"}', "not UTF-8"),
        (b'{"question": "\xed\xa0\x80", "answer": "a"}', "not UTF-8"),
    ],
)
def test_a_broken_record_of_a_list_does_not_affect_the_others(tmp_path, broken, fault):
    file = tmp_path / "data.json"
    texts = [json.dumps(record).encode() for record in RECORDS]
    file.write_bytes(b"[\n" + b",\n".join([*texts[:2], broken, *texts[2:]]) + b"\n]")
    rows = list(read_corpus(str(file)))
    assert [row.record for row in rows if row.fault is None] == RECORDS
    assert [(row.line, row.unit, row.fault) for row in rows if row.fault] == [(3, "record", fault)]


def test_a_table_of_conversations_is_read_like_its_json(tmp_path):
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
def test_any_bytes_yield_rows_or_one_line_that_names_the_file(tmp_path, data, cut, packed, name):
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
