"""The time of a stage over killed attempts, with a fake clock; covered seconds, against a count second by second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.artifacts import stage_time as module
from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import QUARANTINE
from profuser.artifacts.stage_time import (
    DeviceClock,
    StageTime,
    clear_notes,
    count_device_holders,
    stage_time,
    union_seconds,
)
from profuser.planning.plan_file import measure
from profuser.storage.folder import Folder


class Clock:
    """Fake `time` module of a machine booted long after the epoch."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return 1.7e9 + self.now

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def artifact(tmp_path):
    return Artifact(Folder.at(tmp_path / "collect" / "a"), "collect/a", QUARANTINE, {"top_k": 10})


def test_a_stage_that_was_killed_and_resumed_counts_both_attempts(clock, artifact):
    began = clock.time()
    clock.now = 10.0  # the cluster started two actors of four devices here
    first, second = DeviceClock(artifact, 4.0, began), DeviceClock(artifact, 4.0, began)
    clock.now = 40.0
    first.note()
    second.note()
    clock.now = 70.0
    first.note()
    clock.now = 90.0  # killed here: 20 and 50 seconds after the last notes of the two
    clock.now = 1000.0
    again = DeviceClock(artifact, 4.0, clock.time())
    clock.now = 1100.0
    again.note()
    clock.now = 1105.0
    found = stage_time(artifact, seconds=105.0)
    assert found.seconds == pytest.approx(70 + 105)
    assert found.device_seconds == pytest.approx(4 * (60 + 30 + 100))


def test_time_spent_on_other_settings_does_not_count(clock, artifact):
    other = Artifact(artifact.folder, artifact.stage, QUARANTINE, {"top_k": 11})
    old = DeviceClock(other, 1.0, clock.time())
    clock.now = 50.0
    old.note()
    assert stage_time(artifact, 3.0) == StageTime(3.0, 0.0)


def test_a_finished_stage_keeps_its_sums_and_no_notes(clock, artifact):
    DeviceClock(artifact, 1.0, clock.time()).note()
    spent = stage_time(artifact, 3.0)
    artifact.finish([{"rows": 1}], spent.seconds, {}, 7.5)
    clear_notes(artifact)
    assert artifact.folder.names() == ["manifest.json"]
    manifest = artifact.manifest()
    assert (manifest.seconds, manifest.device_seconds) == (3.0, 7.5)


def test_a_manifest_is_measured_in_device_hours_and_their_cost(artifact):
    manifest = artifact.finish([{"rows": 8}], 1800.0, {}, 5400.0)
    found = measure(manifest, 99, 2.0)
    assert found == {"rows": 8, "seconds": 1800, "device_hours": 1.5, "disk_bytes": 99, "money": 3}
    assert "money" not in measure(manifest, 99, None)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_covered_seconds_equal_a_count_second_by_second(spans):
    covered = {second for start, stop in spans for second in range(start, stop)}
    assert union_seconds(spans) == len(covered)


def test_processes_with_devices_and_loaded_ones_are_counted_per_attempt(clock, artifact):
    DeviceClock(artifact, 1.0, clock.time()).note()
    clock.now = 10.0
    began = clock.time()
    assert count_device_holders(artifact, began) == (0, 0)
    first, _ = DeviceClock(artifact, 1.0, began), DeviceClock(artifact, 0.0, began)
    assert count_device_holders(artifact, began) == (2, 0)
    first.note()
    first.note()
    assert count_device_holders(artifact, began) == (2, 1)
