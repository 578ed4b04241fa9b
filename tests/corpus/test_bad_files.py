"""Bad files are reported in one line that names the file and the fault; see also test_fine_files."""

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profuser.errors import UserError
from tests.corpus.prepared import FIRST, LAST, prepared, record

LINES = FIRST + b"\n" + LAST + b"\n"
LIST = b"[" + FIRST + b", " + LAST + b"]"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
NO_RECORD = "no usable row: it contains no records"
NO_JSON = "so it is not a JSON list, JSONL or Parquet file; convert it (YAML, other text) to JSONL, or name it .csv if it is one"
WIDE = "looks like UTF-16 or UTF-32; save it as UTF-8"


def archive(module):
    """Returns a zip or tar archive of the good lines."""
    out = io.BytesIO()
    if module is zipfile:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("data.jsonl", LINES)
    else:
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("data.jsonl"))
    return out.getvalue()


def table(columns, **options):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def encrypted(plaintext_footer):
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def wrap_key(self, key_bytes, master_key_identifier):
            return base64.b64encode(key_bytes)

    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            "footer", column_keys={"column": ["answer"]}, plaintext_footer=plaintext_footer
        ),
    )
    out, rows = io.BytesIO(), pa.table(GOOD)
    with pq.ParquetWriter(out, rows.schema, encryption_properties=properties) as writer:
        writer.write_table(rows)
    return out.getvalue()


def zstandard(data):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


GOOD = {"question": ["Say 1.", "Say 2."], "answer": ["1", "2"]}
PARQUET = table(GOOD)
FILES = {
    "an empty file": ("data.jsonl", b"", NO_RECORD),
    "an empty .json": ("data.json", b"", NO_RECORD),
    "an empty .json.gz": ("data.json.gz", b"", NO_RECORD),
    "an empty gzip": ("data.jsonl.gz", gzip.compress(b""), NO_RECORD),
    "whitespace only": ("data.jsonl", b" \n\r\n\t", NO_RECORD),
    "only a byte order mark": ("data.jsonl", b"\xef\xbb\xbf", NO_RECORD),
    "an empty list": ("data.json", b"[ ]\n", NO_RECORD),
    "a Parquet without rows": ("data.parquet", table({"question": [], "answer": []}), NO_RECORD),
    "a Parquet without columns": ("data.parquet", table({}), NO_RECORD),
    "an empty .parquet": ("data.parquet", b"", "not a readable Parquet file, stopped after record 0"),
    "UTF-16": ("data.json", LIST.decode().encode("utf-16"), WIDE),
    "UTF-16 in a gzip": ("data.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16")), WIDE),
    "UTF-16 without a mark": ("data.jsonl", LINES.decode().encode("utf-16-le"), WIDE),
    "UTF-16 without a mark, big-endian": ("data.jsonl", LINES.decode().encode("utf-16-be"), WIDE),
    "UTF-32": ("data.jsonl", LINES.decode().encode("utf-32"), WIDE),
    "NUL bytes": ("data.jsonl", bytes(4096), "begins with NUL bytes, like an interrupted copy; fetch the file again"),
    "CSV": ("data.jsonl", b"question,answer\nSay 1.,1\n", f"begins with b'q', {NO_JSON}"),
    "a column twice": ("data.csv", b"question,answer,answer\nq,a,a\n", "two columns are named 'answer'; rename one"),
    "a CSV with semicolons": ("data.csv", b"question;answer\nq;a\n", "no known shape (fields: question;answer)"),
    "a web page named .csv": ("data.csv", HTML, "is HTML or XML, perhaps the error page of a download"),
    "an empty .csv": ("data.csv", b"", NO_RECORD),
    "CSV in quotes": ("data.jsonl", b'"question","answer"\n', f"""begins with b'"', {NO_JSON}"""),
    "YAML": ("data.json", b"- question: a\n  answer: b\n", f"begins with b'-', {NO_JSON}"),
    "prose": ("data.jsonl", b"Once upon a time", f"begins with b'O', {NO_JSON}"),
    "prose named .gz": ("data.jsonl.gz", b"no gzip at all", f"begins with b'n', {NO_JSON}"),
    "Markdown around it": ("data.jsonl", b"```json\n" + LINES, f"begins with b'`', {NO_JSON}"),
    "a single number": ("data.json", b"1", f"begins with b'1', {NO_JSON}"),
    "a single null": ("data.json", b"null", f"begins with b'n', {NO_JSON}"),
    "a web page": ("data.json", HTML, "is HTML or XML, perhaps the error page of a download; fetch the file again"),
    "a web page named .gz": ("data.json.gz", HTML, "is HTML or XML, perhaps the error page of a download"),
    "a web page named .parquet": ("data.parquet", HTML, "not a readable Parquet file: it is HTML or XML"),
    "an error in JSON": (
        "data.json",
        b'{"error": "Not found"}',
        "no known shape (fields: error); known shapes: messages",
    ),
    "a Git LFS pointer": ("data.jsonl", LFS, "is a Git LFS pointer, not the data; run git lfs pull"),
    "a Git LFS pointer of a Parquet": ("data.parquet", LFS, "it is a Git LFS pointer, not the data; run git lfs pull"),
    "a zip": ("data.jsonl", archive(zipfile), "is a zip archive or an Excel file; extract it, or export it as JSONL"),
    "a tar": ("data.jsonl", archive(tarfile), "is a tar archive; extract it"),
    "a tar.gz": ("data.jsonl.gz", gzip.compress(archive(tarfile)), "is a tar archive; extract it"),
    "a bzip2 in a gzip": (
        "data.jsonl.gz",
        gzip.compress(bz2.compress(LINES)),
        "is compressed twice; decompress it once",
    ),
    "a list in a cut bzip2": ("data.json", bz2.compress(LIST)[:-9], "the file is truncated here"),
    "a list in a cut Zstandard": ("data.json", zstandard(LIST)[:-9], "the file is truncated here"),
    "xz": ("data.jsonl", lzma.compress(LINES), "is compressed with xz; decompress it, or use gzip"),
    "a gzip in a gzip": (
        "data.jsonl.gz",
        gzip.compress(gzip.compress(LINES)),
        "is a gzip inside a gzip; decompress it once",
    ),
    "a Parquet in a gzip": (
        "data.parquet.gz",
        gzip.compress(PARQUET),
        "is a Parquet file inside a gzip; decompress it",
    ),
    "an Arrow file": ("data.jsonl", b"ARROW1\x00\x00", "is an Arrow file; write it as Parquet"),
    "a gzip cut in its list": ("data.json.gz", gzip.compress(LIST)[:-12], "truncated; fetch the file again"),
    "a gzip, wrong checksum": (
        "data.jsonl.gz",
        gzip.compress(LINES)[:-8] + bytes(8),
        "cannot be read: CRC check failed",
    ),
    "a gzip, trailing bytes": ("data.jsonl.gz", gzip.compress(LINES) + b"more", "the gzip is damaged, fetch it again"),
    "a list cut in a record": ("data.json", LIST[:-9], "record 2 of the JSON list is malformed or truncated: "),
    "a list cut between records": (
        "data.json",
        LIST[:-1],
        "malformed or truncated: the end of the file after record 2",
    ),
    "a list cut at its start": (
        "data.json",
        b"[",
        "record 1 of the JSON list is malformed or truncated: Expecting value",
    ),
    "a list cut in a deep nest": (
        "data.json",
        b"[" * 200_000 + b'"' + rb"\"" * 200_000,
        "the end of the file after record 1",
    ),
    "a list without a comma": (
        "data.json",
        b'[{"a": 1} {"b": 2}]',
        "the JSON list is malformed or truncated: '{' after record 1",
    ),
    "a trailing comma": ("data.json", LIST[:-1] + b",]", "record 3 of the JSON list is malformed or truncated"),
    "two lists in a row": ("data.json", LIST * 2, "there is more text after the JSON list, which ends with record 2"),
    "objects in a row": (
        "data.json",
        FIRST + LAST,
        "1 read, 1 refused; the first: line 1: more than one JSON value on the line",
    ),
    "an object on several lines": (
        "data.json",
        json.dumps({"a": 1}, indent=2).encode(),
        "one record per line (if the list is inside",
    ),
    "a list in an object": (
        "data.json",
        b'{"data": ' + LIST + b"}",
        "fields: data; the records are the list in 'data': save only that list",
    ),
    "columns in an object": (
        "data.json",
        record(question=["a"], answer=["b"]),
        "line 1: question is a list, expected text",
    ),
    "lines that end with CR": (
        "data.jsonl",
        LINES.replace(b"\n", b"\r"),
        "lines end with CR only; save the file with LF",
    ),
    "not a Parquet": ("data.parquet", b"PAR1 nothing", "not a readable Parquet file, stopped after record 0"),
    "a truncated Parquet": (
        "data.parquet",
        PARQUET[: len(PARQUET) // 2],
        "not a readable Parquet file, stopped after record 0",
    ),
    "a Parquet with a hole": ("data.parquet", PARQUET[:4] + bytes(40) + PARQUET[44:], "not a readable Parquet file"),
    "a Parquet of bytes": (
        "data.parquet",
        table({"question": [b"a"], "answer": [b"b"]}),
        "question is bytes, expected text",
    ),
    "a Parquet of other columns": ("data.parquet", table({"text": ["a"]}), "record 1: no known shape (fields: text)"),
    "an encrypted Parquet": ("data.parquet", lambda: encrypted(False), "an encrypted Parquet file; decrypt it first"),
    "a Parquet with an encrypted column": (
        "data.parquet",
        lambda: encrypted(True),
        "an encrypted Parquet file; decrypt it first",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_reported_in_one_line_that_names_it(tmp_path, kind):
    name, data, expected = FILES[kind]
    (tmp_path / name).write_bytes(data() if callable(data) else data)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / name, 1.0)
    assert str(tmp_path / name) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("text", ["jsonl", "csv"])
def test_a_file_truncated_within_a_line_keeps_the_rows_before_it(tmp_path, text, packed):
    draw = random.Random(0)
    # Several blocks of bzip2, which are of 900 kB: it gives nothing of a block that is cut.
    records = [{"question": f"{n} {draw.randbytes(500).hex()}", "answer": f"{n * 7919}"} for n in range(3000)]
    lines = "".join(json.dumps(fields) + "\n" for fields in records)
    if text == "csv":
        lines = "".join(["question,answer\n", *(f"{each['question']},{each['answer']}\n" for each in records)])
    name, data = f"data.{text}{packed}", PACKED[packed](lines.encode())
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    kept, (refused,) = prepared(tmp_path / name)
    assert [row.response for row in kept] == [fields["answer"] for fields in records[: len(kept)]]
    assert len(kept) > 100
    assert refused.line == len(kept) + (2 if text == "csv" else 1)
    # A table that is not compressed shows no end of its text.
    cut = "another number of values than of columns" if name == "data.csv" else "the file is truncated here"
    assert cut in refused.reason
