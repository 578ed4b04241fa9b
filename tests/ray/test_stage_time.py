"""Time and device time of a stage whose actor is killed, whose driver fails, and which is rerun: all attempts count."""

import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayTaskError

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import QUARANTINE
from profuser.errors import EngineError
from profuser.recipe.resources import PoolConfig
from profuser.storage.folder import Folder
from ray_jobs.runtime import stalls
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.shards import finish, run_shards
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ROWS = pa.table({"file": ["f"], "line": [3], "reason": ["r"], "excerpt": ["e"]}, schema=QUARANTINE)
NUM_SHARDS, LOAD_SECONDS, SHARD_SECONDS, NUM_CPUS = 6, 1.0, 0.5, 2.0


class TimedWorker:
    """Worker with fixed times to load and per shard; fails once, before shard 4."""

    def __init__(self, output, failed_once):
        self.output, self.failed_once = output, Path(failed_once)
        time.sleep(LOAD_SECONDS)

    def process(self, shard):
        if shard == 4 and not self.failed_once.exists():
            self.failed_once.touch()
            raise EngineError("enough")
        time.sleep(SHARD_SECONDS)
        self.output.write_shard(shard, ROWS, {"rows": 1})
        return {"rows": 1}


@pytest.fixture
def stage(tmp_path):
    """Returns the arguments of `run_shards`."""
    source, output = (Artifact(Folder.at(tmp_path / name), name, QUARANTINE) for name in ("x", "collect/a"))
    for shard in range(NUM_SHARDS):
        source.write_shard(shard, ROWS, {"rows": 1})
    source.finish([{"rows": NUM_SHARDS}], 0.0)
    worker = partial(TimedWorker, output=output, failed_once=str(tmp_path / "failed_once"))
    return output, source, worker, PoolConfig(num_cpus=NUM_CPUS), 0.0


def test_all_attempts_count(stage):
    output = stage[0]
    with connected():
        start = time.monotonic()
        with (
            stages.Meanwhile(lambda: len(output.shards()) >= 1, stages.kill_an_actor),
            pytest.raises((EngineError, RayTaskError), match="enough"),
        ):
            run_shards(*stage)
        first_seconds = time.monotonic() - start
        counts, seconds = run_shards(*stage)
        manifest = finish(output, counts, seconds)
    assert seconds < manifest.seconds < first_seconds + seconds
    # The killed actor, its replacement, and the actor of the second attempt.
    busy = 3 * LOAD_SECONDS + NUM_SHARDS * SHARD_SECONDS
    assert NUM_CPUS * busy <= manifest.device_seconds < NUM_CPUS * (first_seconds + seconds)
    assert manifest.seconds - seconds > 2 * LOAD_SECONDS + 4 * SHARD_SECONDS
    assert sorted(output.folder.names()) == ["manifest.json", *(f"shard-{n:05d}.parquet" for n in range(NUM_SHARDS))]


def test_a_stage_waiting_for_resources_reports_it(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stalls, "FIRST_SECONDS", 1.0)
    (tmp_path / "failed_once").touch()

    @ray.remote
    def hold(seconds):
        time.sleep(seconds)

    with connected():
        have = int(ray.cluster_resources()["CPU"])
        held = hold.options(num_cpus=have).remote(15.0)
        while ray.available_resources().get("CPU", 0):
            time.sleep(0.1)
        run_shards(*stage)
        ray.get(held)
    output = capsys.readouterr().out
    assert f"no actors scheduled yet: each needs 2 CPU; free in the cluster: 0 of {have} CPU" in output
