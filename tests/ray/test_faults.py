"""Faults in the middle of a stage: afterwards every row exists once, equal to an undisturbed run's."""

import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from profuser.engines.loading import ReadModel
from profuser.errors import ArtifactError, UserError
from profuser.models.lab_paths import assets_path
from ray_jobs.runtime.cluster import connected, gpus_for
from ray_jobs.runtime.shards import finish, run_shards
from ray_jobs.stages.collect import collect
from ray_jobs.stages.prepare import prepare
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    with connected():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "data.jsonl"
    stages.write_corpus(file)
    return file


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus):
    """Returns a run that collected and selected without a fault."""
    run = stages.make_run(tmp_path_factory.mktemp("undisturbed"), corpus, kind="vllm")
    stages.run_until_select(run)
    return run


@pytest.fixture
def prepared(tmp_path, corpus):
    run = stages.make_run(tmp_path / "runs", corpus, kind="vllm")
    prepare(run)
    return run


def with_engine(run, kind):
    """Returns the same run on another engine, which is not part of its identity."""
    return stages.make_run(run.recipe.storage, run.recipe.corpus.path, kind=kind)


def llama(run):
    return run.recipe.sources[0]


def expected(undisturbed):
    return stages.whole(undisturbed.collect(llama(undisturbed)))


def test_a_killed_engine_actor_loses_and_duplicates_no_row(prepared, undisturbed):
    output = prepared.collect(llama(prepared))
    with stages.Meanwhile(lambda: len(output.shards()) >= 1, stages.kill_an_actor):
        collect(prepared, llama(prepared))
    stages.check_same(stages.whole(output), expected(undisturbed))
    assert not (output.folder / "attempts").names()


@pytest.mark.parametrize(("fatal", "kind"), [(True, "vllm"), (False, "transformers")], ids=["killed", "exception"])
def test_a_row_that_crashes_the_engine_is_refused_and_the_others_are_processed(prepared, undisturbed, fatal, kind):
    prepared = with_engine(prepared, kind)
    source = llama(prepared)
    output, corpus = prepared.collect(source), prepared.corpus()
    victim = corpus.read_shard(2).to_pylist()[3]
    worker = partial(
        stages.PoisonedWorker,
        source=corpus,
        output=output,
        model=ReadModel(prepared.model(source).path, source, prepared.recipe.template),
        how=prepared.reading(source),
        poison=victim["messages"][0]["content"],
        fatal=fatal,
    )
    counts, seconds = run_shards(output, corpus, worker, source.pool, gpus_for(source), 2)
    finish(output, counts, seconds)
    found, wanted = stages.whole(output), expected(undisturbed)
    assert [row["row_id"] for row in found] == [row["row_id"] for row in wanted]
    (refused,) = (row for row in found if row["refused"])
    assert refused["row_id"] == victim["row_id"]
    words = "its process died" if fatal else "RuntimeError: device-side assert triggered"
    assert refused["refused"] == f"it crashes the engine: {words}"
    assert refused["answers"] == [] == refused["training_ids"]
    stages.check_same(
        [row for row in found if not row["refused"]], [r for r in wanted if r["row_id"] != victim["row_id"]]
    )
    assert output.manifest().counts["refused"] == 1


def test_a_temporarily_read_only_storage_is_retried(tmp_path, corpus, undisturbed):
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        run = stages.make_run(folder, corpus)
        prepare(run)
        output = run.collect(llama(run))

        def read_only_for_a_while():
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            threading.Event().wait(4)
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)

        with stages.Meanwhile(lambda: len(output.shards()) >= 1, read_only_for_a_while):
            collect(run, llama(run))
        stages.check_same(stages.whole(output), expected(undisturbed))
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_only_a_truncated_shard_is_redone(prepared, undisturbed):
    output = prepared.collect(llama(prepared))
    collect(prepared, llama(prepared))
    files = {number: Path(output.folder.path(f"shard-{number:05d}.parquet")) for number in output.shards()}
    before = {number: file.stat().st_mtime_ns for number, file in files.items()}
    Path(output.folder.path("manifest.json")).unlink()
    files[3].write_bytes(files[3].read_bytes()[:-100])
    collect(prepared, llama(prepared))
    after = {number: file.stat().st_mtime_ns for number, file in files.items()}
    assert {number for number in files if after[number] != before[number]} == {3}
    stages.check_same(stages.whole(output), expected(undisturbed))


def test_signals_of_another_tokenizer_are_refused_by_name(tmp_path, corpus, undisturbed):
    other = tmp_path / "other"
    shutil.copytree(assets_path() / "sources" / "llama", other)
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"padding_side": "left", ', 1))
    storage = undisturbed.recipe.storage
    run = stages.make_run(storage, corpus, stages.MODELS | {"llama": str(other)})
    with pytest.raises(UserError, match="tokenizer: "):
        run.collect(llama(run)).is_complete()
    with pytest.raises(ArtifactError, match=r"shard-00000.parquet is not from this run \(.*tokenizer: "):
        run.collect(llama(run)).read_shard(0)
