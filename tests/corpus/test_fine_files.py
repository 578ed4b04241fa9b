"""Files of every kind are read completely, those that only look bad too."""

import bz2
import gzip

import pyarrow as pa
import pytest

from tests.corpus.prepared import FIRST, LAST, prepared
from tests.corpus.test_bad_files import GOOD, LINES, LIST, table, zstandard


def in_shape(text):
    return pa.array([text, text + "!"], pa.large_string()), pa.array(["1", "2"]).dictionary_encode()


TURNS = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in "12"]
FINE = {
    "a byte order mark": ("data.jsonl", b"\xef\xbb\xbf" + LINES),
    "a byte order mark before a list": ("data.json", b"\xef\xbb\xbf" + LIST),
    "bzip2": ("data.jsonl.bz2", bz2.compress(LINES)),
    "Zstandard": ("data.jsonl.zst", zstandard(LINES)),
    "Zstandard in two frames": ("data.zst", zstandard(FIRST + b"\n") + zstandard(LAST)),
    "CSV": ("data.csv", b"\xef\xbb\xbfquestion,answer\r\nSay 1.,1\r\n\r\nSay 2.,2\r\n"),
    "CSV with quotes and line ends": ("data.csv", b'question,answer\n"Say ""1"",\nplease.",1\nSay 2.,2'),
    "TSV in a gzip": ("data.tsv.gz", gzip.compress(b"question\tanswer\nSay 1.\t1\nSay 2.\t2\n")),
    "Windows line ends": ("data.jsonl", LINES.replace(b"\n", b"\r\n")),
    "CR in a list": ("data.json", LIST.replace(b" {", b"\r{")),
    "NaN in an unused field": ("data.jsonl", LINES.replace(b"{", b'{"score": NaN, ')),
    "an unpaired surrogate in an unused field": ("data.jsonl", LINES.replace(b"{", rb'{"note": "\ud800", ')),
    "ten megabytes in an unused field": (
        "data.jsonl",
        LINES.replace(b"{", b'{"page": "' + b"x" * 10_000_000 + b'", ', 1),
    ),
    "a field twice, of which the last counts": ("data.jsonl", LINES.replace(b"{", b'{"answer": null, ')),
    "line separators in text": ("data.jsonl", LINES.replace(b"Say", "Say\u2028\u0085".encode())),
    "a word just below the limit": ("data.jsonl", LINES.replace(b"Say", b"S" * 999_990)),
    "a Parquet of conversations": ("data.parquet", table({"messages": TURNS})),
    "a Parquet of other encodings": ("data.parquet", table(dict(zip(GOOD, in_shape("Say"), strict=True)))),
    "a Parquet of large rows": ("data.parquet", table(GOOD | {"page": ["x" * 70_000_000, ""]}, compression="zstd")),
}


@pytest.mark.parametrize("kind", FINE)
def test_a_file_that_only_looks_bad_is_read_completely(tmp_path, kind):
    name, data = FINE[kind]
    (tmp_path / name).write_bytes(data)
    kept, refused = prepared(tmp_path / name)
    assert [row.response for row in kept] == ["1", "2"]
    assert refused == []
