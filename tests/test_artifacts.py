"""Storage and artifacts: whole or invisible, never read as something else, and clear about what changed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profuser.artifacts import Artifact, shard_name
from profuser.errors import ArtifactError, UserError
from profuser.schemas import QUARANTINE
from profuser.storage import Folder

ROWS = pa.table({"file": ["f"], "line": [3], "reason": ["r"], "excerpt": ["e"]}, schema=QUARANTINE)


@pytest.fixture
def artifact(tmp_path):
    return Artifact(Folder.at(tmp_path / "run" / "x"), "x", QUARANTINE, {"top_k": 10, "path": "a"}, {"corpus": "0"})


def test_a_shard_and_its_counts_come_back(artifact):
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


def test_a_truncated_shard_is_put_aside_to_be_done_again(artifact, tmp_path):
    artifact.write_shard(0, ROWS, {"rows": 1})
    artifact.write_shard(1, ROWS, {"rows": 1})
    file = tmp_path / "run" / "x" / shard_name(1)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="not a whole Parquet file"):
        artifact.read_shard(1)
    assert list(artifact.finished_shards()) == [0]
    assert f"{shard_name(1)}.bad" in artifact.folder.names()


def test_shards_of_other_settings_are_not_taken_for_ours(artifact):
    artifact.write_shard(0, ROWS, {"rows": 1})
    other = Artifact(artifact.folder, "x", QUARANTINE, {"top_k": 11, "path": "a"}, {"corpus": "0"})
    assert other.finished_shards() == {}


@pytest.mark.parametrize("setting", ["codec", "tokenizer", "top_k"])
def test_a_shard_of_another_codec_tokenizer_or_top_k_is_refused_by_name(tmp_path, setting):
    config = {"codec": 2, "tokenizer": "a1", "top_k": 10}
    ours = Artifact(Folder.at(tmp_path), "collect/a", QUARANTINE, config)
    ours.write_shard(0, ROWS, {"rows": 1})
    other = Artifact(ours.folder, "collect/a", QUARANTINE, config | {setting: "other"})
    with pytest.raises(ArtifactError, match=rf"shard-00000.parquet is not of this run \({setting}: .* -> 'other'\)"):
        other.read_shard(0)
    pq.write_table(ROWS, tmp_path / "shard-00001.parquet")
    with pytest.raises(ArtifactError, match=r"shard-00001.parquet is not of this run \(codec: 'absent' -> 2"):
        ours.read_shard(1)


def test_a_changed_setting_is_named(artifact):
    artifact.finish([], 0.0)
    other = Artifact(artifact.folder, "x", QUARANTINE, {"top_k": 11, "path": "a"}, {"corpus": "1"})
    with pytest.raises(UserError, match=r"top_k: 10 -> 11; its input corpus was redone.*--redo x"):
        other.is_complete()


def test_storage_that_is_none_is_named():
    with pytest.raises(UserError, match="storage nowhere://x"):
        Folder.at("nowhere://x").names()
