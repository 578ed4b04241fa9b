"""Storage and artifacts: atomic writes, no reads of foreign shards, and errors that name what changed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profuser.artifacts.artifact import MANIFEST, Artifact, shard_name
from profuser.artifacts.schemas import QUARANTINE
from profuser.errors import ArtifactError, UserError
from profuser.storage.folder import Folder

ROWS = pa.table({"file": ["f"], "line": [3], "reason": ["r"], "excerpt": ["e"]}, schema=QUARANTINE)


@pytest.fixture
def artifact(tmp_path):
    return Artifact(Folder.at(tmp_path / "run" / "x"), "x", QUARANTINE, {"top_k": 10, "path": "a"}, {"corpus": "0"})


def test_a_shard_and_its_counts_are_read_back(artifact):
    artifact.write_shard(4, ROWS, {"rows": 1, "tokens": 7})
    assert artifact.finished_shards() == {4: {"rows": 1, "tokens": 7}}
    assert artifact.read_shard(4).equals(ROWS)
    artifact.finish([{"rows": 1}, {"rows": 2, "tokens": 3}], 1.0)
    assert artifact.manifest().counts == {"rows": 3, "tokens": 3}
    assert artifact.is_complete()


def test_a_failed_write_leaves_nothing(artifact):
    with pytest.raises(ArtifactError, match="'excerpt' is missing"):
        artifact.write_shard(0, ROWS.drop_columns(["excerpt"]), {"rows": 1})
    with pytest.raises(TypeError):
        artifact.folder.write_json("bad.json", object())
    assert artifact.folder.names() == []


def test_a_truncated_shard_is_renamed_and_made_again(artifact, tmp_path):
    artifact.write_shard(0, ROWS, {"rows": 1})
    artifact.write_shard(1, ROWS, {"rows": 1})
    file = tmp_path / "run" / "x" / shard_name(1)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"not a whole Parquet file: .*; rebuild it with --redo x$"):
        artifact.read_shard(1)
    assert list(artifact.finished_shards()) == [0]
    assert f"{shard_name(1)}.bad" in artifact.folder.names()


class Worker:
    """Makes a stage's shards from those of the previous stage, like an actor; records their indices."""

    def __init__(self, source, output):
        self.source, self.output, self.done = source, output, []

    def run(self):
        """Runs the stage like a driver: finished shards are kept, the others are made."""
        finished = self.output.finished_shards()
        for shard in sorted(set(self.source.shards()) - finished.keys()):
            self.output.write_shard(shard, self.source.read_shard(shard), {"rows": 1})
            self.done.append(shard)
        return self.output.finish(list(self.output.finished_shards().values()), 0.0)


@pytest.fixture
def stage(artifact):
    """A finished stage of three shards without its manifest, as if its driver had died at the end."""
    for shard in range(3):
        artifact.write_shard(shard, ROWS, {"rows": 1})
    artifact.finish([{"rows": 3}], 0.0)
    output = Artifact(artifact.folder.without_retry() / "out", "out", QUARANTINE, {"tokenizer": "a"}, {"x": "1"})
    worker = Worker(artifact, output)
    assert worker.run().counts == {"rows": 3}
    output.folder.remove(MANIFEST)
    worker.done.clear()
    return worker


def cut(data):
    return data[: len(data) // 2]


def zero_the_end(data):
    return data[:-200] + bytes(200)


@pytest.mark.parametrize("damage", [cut, zero_the_end, lambda _: b"", lambda _: b"PAR1"])
def test_a_stage_remakes_only_a_damaged_shard(stage, damage):
    name = shard_name(1)
    file = Path(stage.output.folder.path(name))
    file.write_bytes(damage(file.read_bytes()))
    assert not stage.output.is_complete()
    assert stage.run().counts == {"rows": 3}
    assert stage.done == [1]
    assert stage.output.is_complete()
    assert [table.equals(ROWS) for table in stage.output.tables()] == [True] * 3
    assert stage.output.folder.names() == [MANIFEST, *map(shard_name, range(2)), f"{name}.bad", shard_name(2)]


def test_a_stage_remakes_shards_of_another_tokenizer_and_never_reads_them(stage):
    other = Artifact(stage.output.folder, "out", QUARANTINE, {"tokenizer": "b"}, {"x": "1"})
    with pytest.raises(ArtifactError, match=r"shard-00000.parquet is not from this run \(tokenizer: 'a' -> 'b'\)"):
        next(other.tables())
    again = Worker(stage.source, other)
    assert again.run().counts == {"rows": 3}
    assert again.done == [0, 1, 2]


def test_a_finished_stage_of_another_tokenizer_is_refused_and_the_change_named(stage):
    stage.run()
    other = Artifact(stage.output.folder, "out", QUARANTINE, {"tokenizer": "b"}, {"x": "1"})
    with pytest.raises(
        UserError, match=r"other settings \(tokenizer: 'a' -> 'b'\); use another run name, or .*--redo out"
    ):
        other.is_complete()


@pytest.mark.parametrize("content", [b"", b'{"stage": "out"', b"[1]", b'{"rows": 3}'])
def test_a_damaged_manifest_is_refused_and_named(stage, content):
    stage.output.folder.write_bytes(MANIFEST, content)
    with pytest.raises(ArtifactError, match=r"out/manifest.json: not "):
        stage.output.is_complete()


def test_shards_of_other_settings_do_not_count_as_finished(artifact):
    artifact.write_shard(0, ROWS, {"rows": 1})
    other = Artifact(artifact.folder, "x", QUARANTINE, {"top_k": 11, "path": "a"}, {"corpus": "0"})
    assert other.finished_shards() == {}


@pytest.mark.parametrize("setting", ["codec", "tokenizer", "top_k"])
def test_a_shard_of_another_codec_tokenizer_or_top_k_is_refused_and_the_change_named(tmp_path, setting):
    config = {"codec": 2, "tokenizer": "a1", "top_k": 10}
    ours = Artifact(Folder.at(tmp_path), "collect/a", QUARANTINE, config)
    ours.write_shard(0, ROWS, {"rows": 1})
    other = Artifact(ours.folder, "collect/a", QUARANTINE, config | {setting: "other"})
    with pytest.raises(ArtifactError, match=rf"shard-00000.parquet is not from this run \({setting}: .* -> 'other'\)"):
        other.read_shard(0)
    pq.write_table(ROWS, tmp_path / "shard-00001.parquet")
    with pytest.raises(ArtifactError, match=r"shard-00001.parquet is not from this run \(codec: 'absent' -> 2"):
        ours.read_shard(1)


def test_a_changed_setting_is_named(artifact):
    artifact.finish([], 0.0)
    other = Artifact(artifact.folder, "x", QUARANTINE, {"top_k": 11, "path": "a"}, {"corpus": "1"})
    with pytest.raises(
        UserError, match=r"top_k: 10 -> 11; its input corpus has other settings now, or other inputs.*--redo x"
    ):
        other.is_complete()


def test_an_unknown_storage_scheme_is_named():
    with pytest.raises(UserError, match="storage nowhere://x"):
        Folder.at("nowhere://x").names()
