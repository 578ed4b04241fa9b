"""The stage `prepare`, compared with a corpus in memory; its memory use, and what failed attempts leave."""

import json
import random
import tempfile
import tracemalloc

import pyarrow as pa
import pytest
from mlflow.utils.validation import _validate_metric_name

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CORPUS, QUARANTINE
from profuser.corpus import CorpusRow, choose_heldout, prepare_rows, read_corpus, unused_line
from profuser.corpus.seen import SeenRows
from profuser.corpus.stage import write_corpus
from profuser.errors import ProfuserError, UserError
from profuser.recipe.models import CorpusConfig
from profuser.storage.folder import Folder

STAGES = {"train": CORPUS, "heldout": CORPUS, "quarantine": QUARANTINE}


def artifacts(folder, **config):
    return [Artifact(Folder.at(folder / name), f"prepare/{name}", schema, config) for name, schema in STAGES.items()]


def records(numbers, **more):
    return [{"question": f"Add {n} and 1.", "answer": f"{n + 1}", **more} for n in numbers]


def write(file, records):
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(file)


def written(folder, path, heldout=None, seed=0, **settings):
    """Returns counts and rows of the three artifacts."""
    config = CorpusConfig(path=path, heldout=heldout, **{"max_quarantined_fraction": 1.0, **settings})
    made = artifacts(folder)
    counts = write_corpus(config, seed, made, {})
    return counts, [[row for table in artifact.tables() for row in table.to_pylist()] for artifact in made]


@pytest.fixture
def messy(tmp_path):
    """Two files in which one row in ten is broken, and one in seven a duplicate, often of the other file."""
    rows = [{"bad": n} if n % 10 == 3 else records([n - 60 if n % 7 == 5 else n])[0] for n in range(200)]
    write(tmp_path / "a.jsonl", rows[:120])
    write(tmp_path / "b.jsonl", rows[120:])
    return str(tmp_path / "[ab].jsonl")


@pytest.mark.parametrize("limit", [None, 100, 101])
@pytest.mark.parametrize("rows_per_shard", [1, 8, 1000])
def test_rows_and_quarantine_equal_those_of_the_corpus_in_memory(tmp_path, messy, limit, rows_per_shard):
    kept, refused = [], []
    for row in prepare_rows(read_corpus(messy)):
        (kept if isinstance(row, CorpusRow) else refused).append(row)
        if len(kept) == limit:
            break
    chosen = choose_heldout([row.row_id for row in kept], 17, 3)
    counts, (train, held, bad) = written(
        tmp_path / "out", messy, seed=3, heldout_rows=17, max_rows=limit, rows_per_shard=rows_per_shard
    )
    assert [row["row_id"] for row in train] == [row.row_id for row in kept if row.row_id not in chosen]
    assert [row["row_id"] for row in held] == [row.row_id for row in kept if row.row_id in chosen]
    assert [(row["file"], row["line"], row["reason"]) for row in bad] == [(r.file, r.line, r.reason) for r in refused]
    assert counts == [
        {"rows": len(kept) - 17, "quarantined": len(refused)},
        {"rows": 17},
        {"rows": len(refused)},
    ]


def test_all_shards_but_the_last_are_of_equal_size(tmp_path):
    path = write(tmp_path / "a.jsonl", records(range(100)))
    written(tmp_path / "out", path, heldout_rows=9, rows_per_shard=20)
    corpus, heldout, _ = artifacts(tmp_path / "out")
    sizes = [[table.num_rows for table in artifact.tables()] for artifact in (corpus, heldout)]
    assert sizes == [[20, 20, 20, 20, 11], [9]]


def test_a_duplicate_names_the_file_and_line_of_the_first(tmp_path, messy):
    _, (_, _, bad) = written(tmp_path / "out", messy, heldout_rows=0)
    later = next(row for row in bad if row["reason"].startswith("duplicate") and row["file"].endswith("b.jsonl"))
    assert (later["line"], later["reason"]) == (5, f"duplicate of {tmp_path / 'a.jsonl'}:65")


def test_every_duplicate_names_the_first_location_of_its_content():
    seen, first, draw = SeenRows(), {}, random.Random(0)
    for file in ("a.json", "b.json", "c.json"):
        for line in range(1, 200):
            row_id = f"{draw.randrange(250) * 73786976294838:016x}"
            assert (row_id in seen) == (row_id in first)
            assert seen.add(row_id, file, line) == first.get(row_id)
            first.setdefault(row_id, f"{file}:{line}")
    assert list(seen) == list(first)
    assert len(seen) == len(first) < 300


def test_rows_of_the_corpus_are_removed_from_the_heldout_corpus(tmp_path):
    corpus = write(tmp_path / "a.jsonl", [{"bad": 1}, *records(range(20))])
    own = write(tmp_path / "b.jsonl", [*records(range(18, 24)), {"bad": 2}, *records([20])])
    counts, (train, held, bad) = written(tmp_path / "out", corpus, own, heldout_rows=0)
    assert [row["response"] for row in held] == ["21", "22", "23", "24"]
    assert [(row["line"], row["reason"].split(" (")[0]) for row in bad] == [
        (1, "no known shape"),
        (7, "no question with an answer"),
        (8, f"duplicate of {own}:3"),
        (1, "held-out row is also in the corpus"),
        (2, "held-out row is also in the corpus"),
    ]
    assert len(train) == 20
    assert counts == [{"rows": 20, "quarantined": 5}, {"rows": 4}, {"rows": 5}]


def test_a_prompt_of_the_corpus_is_removed_from_the_heldout_corpus_with_any_answer(tmp_path):
    corpus = write(tmp_path / "a.jsonl", records(range(20)))
    own = write(tmp_path / "b.jsonl", [{**row, "answer": "other"} for row in records(range(18, 22))])
    _, (_, held, bad) = written(tmp_path / "out", corpus, own, heldout_rows=0)
    assert [row["messages"][0]["content"] for row in held] == ["Add 20 and 1.", "Add 21 and 1."]
    assert [row["reason"] for row in bad] == ["prompt of a held-out row is also in the corpus"] * 2


def test_what_a_heldout_corpus_does_not_use_is_counted_in_its_artifact(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    own = write(tmp_path / "b.jsonl", [{"messages": turns, "hint": "Think."}])
    counts, _ = written(tmp_path / "out", write(tmp_path / "a.jsonl", records(range(5))), own)
    assert counts[1] == {"rows": 1, "unused_fields/hint": 1, "unused_turns": 1}
    assert unused_line(counts[1]) == "1 turns not used; fields not used: hint (1 rows)"


def test_fields_are_counted_under_names_that_mlflow_accepts_and_only_the_most_frequent(tmp_path):
    names = ["Frage (kurz)", "a/b", "..", "x" * 300, *(f"f{n}" for n in range(40))]
    rows = [{**row, **dict.fromkeys(names[: 44 - n], "text")} for n, row in enumerate(records(range(44)))]
    counts, _ = written(tmp_path / "out", write(tmp_path / "a.jsonl", rows), heldout_rows=0)
    named = [name for name in counts[0] if name.startswith("unused_fields/")]
    assert len(named) == 21
    assert sum(counts[0][name] for name in named) == 44 * 45 / 2
    for name in named:
        _validate_metric_name(f"stage/{name}")


def test_memory_hardly_grows_with_the_rows(tmp_path):
    def peak(number):
        path = write(tmp_path / f"{number}.jsonl", records(range(number), text="x" * 200))
        tracemalloc.start()
        written_rows = write_corpus(CorpusConfig(path=path), 0, artifacts(tmp_path / f"{number}"), {})
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert written_rows[0]["rows"] == number - 200
        return size

    # A row as Python objects is more than a thousand bytes.
    assert (peak(5_000) - peak(1_000)) / 4_000 < 300


def test_a_category_that_no_record_has_is_one_line_with_the_existing_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", records(range(5), skill="add"))
    with pytest.raises(UserError) as caught:
        written(tmp_path / "out", path, heldout_rows=1, category_field="skil")
    assert str(caught.value) == (
        f"corpus.category_field: no record of {path} has a field 'skil' (the first has fields: answer, question, skill); "
        "fix the name, or set it to null"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["the last row", "a null"])
def test_a_category_that_one_record_has_is_enough(tmp_path, where):
    more = records([9], skill=None if where == "a null" else "add")
    path = write(tmp_path / "a.jsonl", [*records(range(5)), *more])
    _, (train, _, _) = written(tmp_path / "out", path, heldout_rows=0, category_field="skill")
    assert [row["category"] for row in train] == [None] * 5 + [None if where == "a null" else "add"]


def test_a_heldout_corpus_may_lack_the_category(tmp_path):
    corpus = write(tmp_path / "a.jsonl", records(range(5), skill="add"))
    own = write(tmp_path / "b.jsonl", records(range(5, 8)))
    _, (_, held, _) = written(tmp_path / "out", corpus, own, category_field="skill")
    assert [row["category"] for row in held] == [None] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_quarantined_fraction": 0.05}, "were refused, more than corpus.max_quarantined_fraction=0.05"),
        ({"heldout_rows": 500}, "none is left to train on"),
    ],
)
def test_nothing_is_written_for_a_refused_corpus(tmp_path, messy, settings, expected):
    with pytest.raises(UserError, match=expected):
        written(tmp_path / "out", messy, **settings)
    assert not (tmp_path / "out").exists()


def test_a_second_attempt_gives_the_result_of_an_uninterrupted_one(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", records(range(100)))
    settings = {"heldout_rows": 9, "rows_per_shard": 10}
    whole = written(tmp_path / "whole", path, **settings)
    # An earlier attempt with another recipe had more shards.
    artifacts(tmp_path / "out", seed=7)[0].write_shard(50, pa.Table.from_pylist([], schema=CORPUS), {"rows": 0})
    write_shard = Artifact.write_shard

    def interrupted(artifact, index, table, counts):
        if index == 4:
            raise KeyboardInterrupt
        write_shard(artifact, index, table, counts)

    with monkeypatch.context() as patch:
        patch.setattr(Artifact, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "out", path, **settings)
    assert all(artifact.manifest() is None for artifact in artifacts(tmp_path / "out"))
    assert written(tmp_path / "out", path, **settings) == whole


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", records(range(100)))
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (the spool takes it)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
    with pytest.raises(
        ProfuserError, match=r"No space left on device; free some space, or set TMPDIR to another folder"
    ):
        written(tmp_path / "out", path, heldout_rows=1)
    assert not (tmp_path / "out").exists()
