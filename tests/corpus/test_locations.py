"""Corpus locations: files in a fixed order, a Hub dataset, or a one-line error."""

import gzip
import sys
from types import SimpleNamespace

import pytest

from profuser.corpus import corpus_files, read_corpus
from profuser.corpus.locations import is_hub_name
from profuser.errors import UserError

TREE = (
    "b.jsonl",
    "a.json",
    "notes.txt",
    ".hidden.jsonl",
    ".cache/old.jsonl",
    "deep/c.jsonl.gz",
    "deep/er/D.PARQUET",
    "deep/e.json.gz",
    "f.ndjson",
    "set[1].jsonl",
)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (
            ".",
            ["a.json", "b.jsonl", "deep/c.jsonl.gz", "deep/e.json.gz", "deep/er/D.PARQUET", "f.ndjson", "set[1].jsonl"],
        ),
        ("deep", ["deep/c.jsonl.gz", "deep/e.json.gz", "deep/er/D.PARQUET"]),
        ("*.json*", ["a.json", "b.jsonl", "set[1].jsonl"]),
        ("[ab].*", ["a.json", "b.jsonl"]),
        ("**/*.gz", ["deep/c.jsonl.gz", "deep/e.json.gz"]),
        ("notes.txt", ["notes.txt"]),
        (".hidden.jsonl", [".hidden.jsonl"]),
        ("set[1].jsonl", ["set[1].jsonl"]),
    ],
)
def test_corpus_files_are_sorted_and_other_files_left_out(tree, location, expected):
    assert [file.as_posix() for file in corpus_files(location)] == expected


def test_a_folder_is_read_file_by_file_and_each_row_has_its_file_and_line(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n\n{"n": 3}\n')
    (tmp_path / "a.json").write_text('[{"n": 0}, {"n": 1}]')
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(b'{"n": 4}\n'))
    rows = list(read_corpus(str(tmp_path)))
    assert [row.record for row in rows] == [{"n": n} for n in range(5)]
    places = [("a.json", 1), ("a.json", 2), ("b.jsonl", 1), ("b.jsonl", 3), ("c.jsonl", 1)]
    assert [(row.file, row.line) for row in rows] == [(str(tmp_path / name), line) for name, line in places]


def test_a_tilde_is_the_home_folder_or_a_part_of_the_name(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert corpus_files("~/a.json") == [tree / "a.json"]
    (tree / "~old.jsonl").touch()
    assert [file.name for file in corpus_files("~old.jsonl")] == ["~old.jsonl"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("a.jsonl", "no such file"),
        ("data/a.jsonl", "no such file"),
        ("folder.jsonl", "no corpus file in this folder; known endings: .json"),
        ("  ", "corpus.path is empty"),
        ("http://host/a.jsonl", "copy it here"),
        ("~no-such-user/a.jsonl", "no such file"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b.jsonl", "no such file"),
    ],
)
def test_an_invalid_location_is_reported_in_one_line_that_names_it(tree, location, expected):
    with pytest.raises(UserError, match=expected) as caught:
        list(read_corpus(location))
    assert "\n" not in str(caught.value)
    assert location.strip() in str(caught.value)


@pytest.mark.parametrize(
    ("location", "is_hub"),
    [
        ("tatsu-lab/alpaca", True),
        ("hub:tatsu-lab/alpaca", True),
        ("tatsu-lab/alpaca:test", True),
        ("alpaca", False),
        ("data/alpaca.jsonl", False),
        ("a/b/c", False),
        ("./alpaca", False),
        ("~/alpaca", False),
        ("/alpaca", False),
        ("alpaca/", False),
        ("s3://alpaca", False),
    ],
)
def test_only_owner_and_name_count_as_a_hub_dataset(location, is_hub):
    assert is_hub_name(location) is is_hub


def test_a_folder_takes_precedence_over_a_hub_dataset_of_the_same_name(tree):
    assert [file.name for file in corpus_files("deep/er")] == ["D.PARQUET"]
    assert corpus_files("deep/sea") == []
    assert corpus_files("hub:deep/er") == []


@pytest.fixture
def hub(monkeypatch):
    """A fake Hub with one dataset, which records the requests."""
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split))
        if name != "owner/name":
            raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")
        return iter([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "datasets.exceptions", SimpleNamespace(DatasetsError=RuntimeError))
    return asked


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name:test", ("owner/name", None, "test")),
        ("hub:owner/name/main:test", ("owner/name", "main", "test")),
    ],
)
def test_a_hub_dataset_is_requested_by_name_configuration_and_split(hub, location, asked):
    rows = list(read_corpus(location))
    assert hub == [asked]
    assert [(row.record, row.line, row.unit) for row in rows] == [
        ({"question": "a", "answer": "b"}, 1, "record"),
        ({"question": "c", "answer": "d"}, 2, "record"),
    ]
    assert {row.file for row in rows} == {f"hub:{location.removeprefix('hub:')}"}


def test_an_unavailable_hub_dataset_is_reported_in_one_line_that_names_it(hub):
    with pytest.raises(UserError, match=r"other/name: no such local file.*no network") as caught:
        list(read_corpus("other/name"))
    assert "\n" not in str(caught.value)
