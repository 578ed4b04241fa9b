"""Runs in an object store: a mistake is one line within seconds, an outage is waited for, and a cut write counts for nothing."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from profuser.artifacts.artifact import Artifact, shard_name
from profuser.artifacts.lock import RunLock
from profuser.corpus import corpus_files, read_corpus
from profuser.errors import StorageError, UserError
from profuser.models.reference import ModelRef, local_model
from profuser.run.finding import find_run
from profuser.run.inputs import corpus_digest
from profuser.storage import cache as copies
from profuser.storage.folder import Folder
from tests import tiny
from tests.cli.test_app import profuser
from tests.object_store import object_store

SCHEMA = pa.schema({"row_id": pa.int64()})
NUM_ROWS = 500_000
"""Eight bytes each: some four megabytes on their way."""
PROMPTLY_SECONDS = 20


@pytest.fixture(scope="module")
def store():
    with object_store() as made:
        yield made


@pytest.fixture(autouse=True)
def environment(store, monkeypatch, tmp_path):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(copies, "CACHE", tmp_path / "cache")


@pytest.fixture
def folder(store, request):
    return Folder.at(store.uri("runs", request.node.name))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


def artifact(folder, **settings):
    return Artifact(replace(folder, **settings), "x", SCHEMA, {"a": 1})


def rows(index):
    return pa.table({"row_id": np.random.default_rng(index).integers(0, 1 << 60, NUM_ROWS)}, schema=SCHEMA)


@contextmanager
def promptly():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < PROMPTLY_SECONDS


def refuse(match):
    return pytest.raises(UserError, match=match)


def test_an_artifact_in_a_bucket_is_as_one_on_a_disk(folder):
    made = artifact(folder)
    for index in range(2):
        made.write_shard(index, rows(index), {"rows": NUM_ROWS})
    assert not made.is_complete()
    made.finish(list(made.finished_shards().values()), 1.0)
    again = artifact(Folder.at(folder.uri))
    assert again.is_complete()
    assert again.manifest().counts == {"rows": 2 * NUM_ROWS}
    assert again.read_shard(1).equals(rows(1))
    assert again.folder.names() == ["manifest.json", shard_name(0), shard_name(1)]


def test_a_missing_bucket_is_told_at_set_up():
    with (
        promptly(),
        refuse(r"storage s3://nowhere/runs: .*'nowhere' not found.*; make the bucket or mend its name") as e,
    ):
        Folder.at("s3://nowhere/runs").check_writable()
    assert "\n" not in str(e.value)


def test_wrong_credentials_are_told_at_set_up(store, folder, monkeypatch):
    with store.asking_for_keys() as keys:
        with promptly(), refuse(r"storage s3://bucket/.*ACCESS_DENIED.*; give credentials .*AWS_ACCESS_KEY_ID") as e:
            folder.check_writable()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AWS_ACCESS_KEY_ID"])
        with promptly(), refuse(r"; give credentials .*AWS_SECRET_ACCESS_KEY"):
            folder.check_writable()
        with refuse(r"target.model: s3://bucket/models/llama/config.json: .*; give credentials"):
            ModelRef(store.uri("models", "llama")).config("target.model")
        with refuse(r"s3://bucket/corpus: .*; give credentials"):
            corpus_files(store.uri("corpus"))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["AWS_SECRET_ACCESS_KEY"])
        folder.check_writable()
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_at_set_up(store, folder):
    store.door.shut()
    try:
        with promptly(), refuse(r"storage s3://bucket/.*: .*NETWORK_CONNECTION.*; see that it runs .*AWS_ENDPOINT_URL"):
            folder.check_writable()
    finally:
        store.door.open()
    folder.check_writable()
    assert folder.names() == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["storage=s3://nowhere/runs"], "storage s3://nowhere/runs: "),
        (["target.model=s3://bucket/models/none"], "target.model: 's3://bucket/models/none' is not a model"),
        (["corpus.path=s3://bucket/none.jsonl"], "corpus.path: s3://bucket/none.jsonl: no such file or folder"),
    ],
)
def test_the_command_ends_with_one_line_and_exit_2(monkeypatch, capsys, store, tmp_path, model, settings, expected):
    (tmp_path / "data.jsonl").write_text('{"question": "What?", "answer": "That."}\n')
    given = [f"corpus.path={tmp_path / 'data.jsonl'}", "lab=null", f"target.model={model}", "storage=s3://bucket/runs"]
    arguments = [part for setting in [*given, *settings] for part in ("--set", setting)]
    with promptly():
        code, out, err = profuser(monkeypatch, capsys, "run", "demo", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_a_run_in_a_bucket_that_is_not_there_is_not_found():
    with promptly(), refuse(r"run 'demo' not found; no runs in s3://nowhere/runs"):
        find_run("demo", "s3://nowhere/runs")


@pytest.mark.slow
def test_a_write_that_is_cut_leaves_nothing_that_counts_as_finished(store, folder):
    made = artifact(folder, retry_seconds=0.0)
    made.write_shard(0, rows(0), {"rows": NUM_ROWS})
    store.door.cut_after = 1_000_000
    try:
        with pytest.raises(StorageError, match=rf"{shard_name(1)}: .*run again"):
            made.write_shard(1, rows(1), {"rows": NUM_ROWS})
    finally:
        store.door.shut()
        store.door.open()
    assert made.finished_shards().keys() == {0}
    assert not made.is_complete()
    assert shard_name(1) not in made.folder.names()


@pytest.mark.slow
def test_an_outage_is_waited_for(store, folder):
    made = artifact(folder, retry_seconds=60)
    made.write_shard(0, rows(0), {"rows": NUM_ROWS})
    for action in (lambda: made.write_shard(1, rows(1), {"rows": NUM_ROWS}), lambda: made.read_shard(0)):
        store.door.shut()
        back = threading.Timer(3, store.door.open)
        back.start()
        action()
        back.join()
    assert made.read_shard(1).equals(rows(1))


def test_one_driver_at_a_time(folder):
    with RunLock(folder, settle_seconds=0.2), refuse("another driver .* is at work on it"), RunLock(folder):
        pass
    assert folder.names() == []


def test_a_model_in_a_bucket_is_that_of_the_disk(store, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store.put(model, "models/llama")
    there, here = ModelRef(store.uri("models", "llama")), ModelRef(model)
    assert there.digest("target.model") == here.digest("target.model")
    assert there.tokenizer_digest("target.model") == here.tokenizer_digest("target.model")
    assert there.config("target.model") == here.config("target.model")
    light = there.local(weights=False)
    assert (
        AutoTokenizer.from_pretrained(light)("a b")["input_ids"]
        == AutoTokenizer.from_pretrained(model)("a b")["input_ids"]
    )
    assert not list(copies.CACHE.rglob("*.safetensors"))
    assert (
        AutoModelForCausalLM.from_pretrained(local_model(there.path)).config.vocab_size
        == here.config("x")["vocab_size"]
    )


def test_a_copy_follows_what_it_is_a_copy_of(store, tmp_path):
    local = tmp_path / "model"
    local.mkdir()
    for name in ("config.json", "old.json"):
        (local / name).write_text("{}")
    store.put(local, "models/changing")
    place = copies.local_copy(Folder.at(store.uri("models", "changing")))
    assert sorted(file.name for file in place.iterdir()) == ["config.json", "old.json"]
    kept = (place / "old.json").stat().st_ino
    (local / "config.json").write_text('{"vocab_size": 7}')
    store.put(local / "config.json", "models/changing/config.json")
    copies.local_copy(Folder.at(store.uri("models", "changing")))
    assert (place / "config.json").read_text() == '{"vocab_size": 7}'
    assert (place / "old.json").stat().st_ino == kept
    store.remove("models/changing/old.json")
    copies.local_copy(Folder.at(store.uri("models", "changing")))
    assert [file.name for file in place.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_a_copy_that_is_cut_is_no_model(store, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(8_000_000))
    store.put(tmp_path / "model", "models/cut")
    store.door.cut_after = 1_000_000
    source = Folder.at(store.uri("models", "cut")).without_retry()
    try:
        with pytest.raises(StorageError):
            copies.local_copy(source)
    finally:
        store.door.shut()
        store.door.open()
    assert not list(copies.CACHE.rglob("*model.safetensors*"))
    assert (copies.local_copy(source) / "model.safetensors").stat().st_size == 8_000_000


def test_a_corpus_in_a_bucket_is_read_with_its_own_places(store, tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    (corpus / "a.jsonl").write_text('{"n": 0}\n\n{"n": 1}\n')
    (corpus / "deep" / "b.json").write_text('[{"n": 2}]')
    (corpus / "notes.txt").write_text("none")
    store.put(corpus, "corpora/one")
    found = [(row.file, row.line, row.record["n"]) for row in read_corpus(store.uri("corpora", "one"))]
    uri = store.uri("corpora", "one")
    assert found == [(f"{uri}/a.jsonl", 1, 0), (f"{uri}/a.jsonl", 3, 1), (f"{uri}/deep/b.json", 1, 2)]
    assert [row.record["n"] for row in read_corpus(f"{uri}/a.jsonl")] == [0, 1]
    assert corpus_digest(uri) == corpus_digest(str(corpus))
    with refuse(r"s3://bucket/corpora/one/\*.jsonl: no such file or folder; .* give the folder"):
        corpus_files(f"{uri}/*.jsonl")
