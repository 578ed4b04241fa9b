"""Bad locations are reported in one line that names them: folders, globs, links, permissions and Hub names."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profuser.errors import UserError
from tests.corpus.prepared import FIRST, LAST, prepared

NOBODY = 65534
ENDINGS = "known endings: .json, .jsonl, .ndjson, .csv, .tsv (each also with .gz, .bz2, .zst), .parquet"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Changes to a temporary folder that holds two good rows."""
    monkeypatch.chdir(tmp_path)
    Path("good").mkdir()
    Path("good/data.jsonl").write_bytes(FIRST + b"\n" + LAST + b"\n")
    return tmp_path


def folder(name, **files):
    Path(name).mkdir()
    for file, data in files.items():
        Path(name, file.replace("_", ".")).write_bytes(data)
    return name


def link(name, to):
    Path(name).symlink_to(to)
    return name


def pipe(name):
    os.mkfifo(name)
    return name


def other_table(name):
    pq.write_table(pa.table({"text": ["a"]}), name)
    return "good"


def broken_neighbour(name):
    Path(name).write_bytes(b"PAR1")
    return "good/*"


PLACES = {
    "an empty folder": (lambda: folder("data"), f"data: no corpus file in this folder; {ENDINGS}"),
    "a folder with no data": (
        lambda: folder("data", a_txt=b"a", b_xlsx=b"b"),
        f"data: no corpus file in this folder; {ENDINGS}",
    ),
    "a folder with empty files": (
        lambda: folder("data", a_jsonl=b"", b_json=b"[]"),
        "data: no usable row: it contains no records",
    ),
    "a glob that matches nothing": (lambda: "good/*.parquet", "good/*.parquet: matches no file"),
    "a glob of other files": (lambda: folder("data", a_txt=b"a") + "/*", f"data/*: matches no corpus file; {ENDINGS}"),
    "a link to itself": (
        lambda: link("a.jsonl", "a.jsonl"),
        "a.jsonl: a broken symbolic link: Too many",
    ),
    "a link to nothing": (
        lambda: link("a.jsonl", "b.jsonl"),
        "a.jsonl: a broken symbolic link: No such",
    ),
    "a link to nothing in a folder": (
        lambda: os.path.dirname(link("good/more.jsonl", "gone.jsonl")),
        "good/more.jsonl: a broken symbolic link: No such file",
    ),
    "a link to itself in a glob": (
        lambda: link("good/more.jsonl", "more.jsonl").replace("more", "*"),
        "good/more.jsonl: a broken symbolic link: Too many levels",
    ),
    "a pipe": (lambda: pipe("a.jsonl"), "a.jsonl: neither a file nor a folder (a pipe or a device?); save its content"),
    "a device": (
        lambda: os.devnull,
        f"{os.devnull}: neither a file nor a folder (a pipe or a device?); save its content",
    ),
    "a file as a folder": (lambda: "good/data.jsonl/a.jsonl", "good/data.jsonl/a.jsonl: no such file or folder"),
    "another Parquet file with another schema": (
        lambda: other_table("good/other.parquet"),
        "good: 1 of 3 rows (33.3 %) were refused, more than corpus.max_quarantined_fraction=0.05; the first: "
        "good/other.parquet, record 1: no question with an answer (fields: text)",
    ),
    "another Parquet file that is broken": (
        lambda: broken_neighbour("good/other.parquet"),
        "good/other.parquet: not a readable Parquet file, stopped after record 0",
    ),
    "an empty Hub name": (
        lambda: "hub:",
        "hub:: not a Hub dataset name; expected hub:owner/name, hub:owner/name:split",
    ),
    "a path as a Hub name": (
        lambda: "hub:../data",
        "hub:../data: not a Hub dataset name; expected hub:owner/name",
    ),
    "a Hub name with too many parts": (
        lambda: "hub:a/b/c/d",
        "hub:a/b/c/d: not a Hub dataset name; expected hub:owner/name",
    ),
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_bad_location_is_reported_in_one_line_that_names_it(here, kind):
    make, expected = PLACES[kind]
    with pytest.raises(UserError) as caught:
        prepared(make())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["good", "good/**/*.jsonl", "good/**"])
def test_a_loop_of_folders_yields_each_row_once(here, location):
    link("good/again", ".")
    link("good/above", "..")
    kept, refused = prepared(location)
    assert [row.response for row in kept] == ["1", "2"]
    assert refused == []


@contextmanager
def as_nobody():
    """Drops root's permission to read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("root cannot switch to another user")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared():
    """A world-readable folder with a good file, and a subfolder with another."""
    top = Path(tempfile.mkdtemp())
    (top / "deep").mkdir()
    for file, row in (("a.jsonl", FIRST), ("deep/b.jsonl", LAST)):
        (top / file).write_bytes(row)
    for path in (top, top / "deep"):
        path.chmod(0o755)
    with as_nobody():
        if not os.access(top / "a.jsonl", os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            pytest.skip("no world-readable folder is available")
    yield top
    for path in (top / "deep", top / "deep/b.jsonl"):
        path.chmod(0o755)
    shutil.rmtree(top)


@pytest.mark.parametrize(
    ("location", "closed", "expected"),
    [
        ("deep/b.jsonl", "deep/b.jsonl", "{top}/deep/b.jsonl: cannot be read: Permission denied"),
        ("", "deep/b.jsonl", "{top}/deep/b.jsonl: cannot be read: Permission denied"),
        ("*/*.jsonl", "deep/b.jsonl", "{top}/deep/b.jsonl: cannot be read: Permission denied"),
        ("deep/b.jsonl", "deep", "{top}/deep/b.jsonl: cannot be read: Permission denied"),
        ("deep", "deep", "{top}/deep: cannot be read: Permission denied"),
        ("", "deep", "{top}: cannot be read: Permission denied ({top}/deep)"),
    ],
)
def test_an_unreadable_path_is_an_error_and_not_missing_rows(shared, location, closed, expected):
    with as_nobody():
        assert len(prepared(shared)[0]) == 2
    (shared / closed).chmod(0)
    with as_nobody(), pytest.raises(UserError) as caught:
        prepared(shared / location)
    assert str(caught.value) == expected.format(top=shared)


def test_a_hub_name_is_refused_in_one_line_when_offline(here):
    # In a separate process: the Hub client reads its settings once, on import.
    code = "from tests.corpus.prepared import prepared; prepared('owner/name')"
    root = str(Path(__file__).parents[2])
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(here), "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "profuser.errors.UserError: owner/name: no such local file, and not loaded as a Hub dataset: "
    )
    assert "no network, or HF_HUB_OFFLINE is set" in line
    assert line.endswith("give a path, or fix the name")
