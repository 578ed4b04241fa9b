"""A storage that is unavailable or full: retries, one-line errors, and no unfinished files."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from profuser.artifacts.artifact import Artifact, shard_name
from profuser.artifacts.tracking import RunHandle, Tracker
from profuser.errors import StorageError, UserError
from profuser.storage.folder import Folder

SCHEMA = pa.schema({"row_id": pa.int64(), "text": pa.string()})
NUM_SHARDS, NUM_ROWS = 40, 500

WRITER = "import sys; from tests.storage.test_folder import artifact, write_all; write_all(artifact(sys.argv[1]))"


def write_all(made):
    """Writes shards one by one, like a worker."""
    for index in range(NUM_SHARDS):
        made.write_shard(index, rows(index), {"rows": NUM_ROWS})
        print(index, flush=True)
        time.sleep(0.02)


def artifact(folder, **settings):
    return Artifact(replace(Folder.at(folder), **settings), "x", SCHEMA, {"a": 1})


def rows(index):
    numbers = np.random.default_rng(index).integers(0, 1 << 60, NUM_ROWS)
    return pa.table({"row_id": numbers, "text": [str(number) for number in numbers]}, schema=SCHEMA)


def run(*command):
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def mount(tmp_path):
    """Mounts an in-memory disk of a given size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def make(size):
        if not run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)):
            pytest.skip("no permission to mount a disk")
        return disk

    yield make
    run("umount", str(disk))


@contextmanager
def read_only(disk):
    """Makes a disk read-only, also for root, who could write in spite of a folder's mode."""
    deadline = time.monotonic() + 20
    # The remount fails as busy while a file on the disk is being written.
    while not run("mount", "-o", "remount,ro", str(disk)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    try:
        yield
    finally:
        assert run("mount", "-o", "remount,rw", str(disk))


def test_a_writer_survives_a_temporarily_read_only_storage(mount):
    disk = mount("16m")
    command = [sys.executable, "-c", WRITER, str(disk / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "0\n"
        with read_only(disk):
            time.sleep(3)
            seen = artifact(disk / "x").folder.names()
        printed, log = writer.stdout.read(), writer.stderr.read()
    assert writer.returncode == 0, log
    assert len(seen) < NUM_SHARDS
    assert printed.split() == [str(index) for index in range(1, NUM_SHARDS)]
    made = artifact(disk / "x")
    assert made.folder.names() == [shard_name(index) for index in range(NUM_SHARDS)]
    assert made.finished_shards().keys() == set(range(NUM_SHARDS))
    assert all(made.read_shard(index).equals(rows(index)) for index in range(NUM_SHARDS))
    outage, recovery = log.splitlines()
    assert f"{disk / 'x'}/shard-" in outage
    assert "Read-only file system; retrying for up to 120 s" in outage
    assert "available again after" in recovery


def test_a_storage_that_stays_read_only_is_an_error(mount):
    disk = mount("1m")
    made = artifact(disk / "x", retry_seconds=0.6)
    made.write_shard(0, rows(0), {"rows": NUM_ROWS})
    with (
        read_only(disk),
        pytest.raises(StorageError, match=r"x/shard-00001.parquet: Read-only file system for 1 s; fix"),
    ):
        made.write_shard(1, rows(1), {"rows": NUM_ROWS})
    with read_only(disk), pytest.raises(StorageError, match=r"manifest.json: Read-only file system"):
        made.finish([], 0.0)
    assert made.folder.names() == [shard_name(0)]


def test_an_unwritable_storage_is_reported_at_set_up(mount):
    disk = mount("1m")
    folder = Folder.at(disk / "runs")
    start = time.monotonic()
    message = r"storage .*/disk/runs: Read-only file system; .* or choose another: --set storage=FOLDER"
    with read_only(disk), pytest.raises(UserError, match=message):
        folder.check_writable()
    (disk / "file").touch()
    with pytest.raises(UserError, match=r"file/run: Not a directory; .* --set storage=FOLDER"):
        Folder.at(disk / "file" / "run").check_writable()
    assert time.monotonic() - start < 5
    folder.check_writable()
    assert folder.names() == []


def test_a_full_disk_is_reported_at_once_and_leaves_no_unfinished_files(mount):
    disk = mount("64k")
    made = artifact(disk / "x")
    start = time.monotonic()
    with pytest.raises(
        StorageError, match=r"x/shard-0000\d.parquet: No space left on device; free some space"
    ) as error:
        write_all(made)
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)
    whole = made.finished_shards()
    assert 0 < len(whole) < NUM_SHARDS
    assert made.folder.names() == [shard_name(index) for index in whole]
    with pytest.raises(StorageError, match="No space left"):
        made.folder.write_bytes("manifest.json", b"0" * 100_000)
    assert not made.is_complete()
    (disk / "rest").write_bytes(b"0" * 4096 * (shutil.disk_usage(disk).free // 4096))
    with pytest.raises(UserError, match="No space left on device; free some space"):
        made.folder.check_writable()
    assert made.folder.names() == [shard_name(index) for index in whole]


def test_unfinished_files_of_a_dead_writer_are_deleted_and_those_of_a_running_one_kept(tmp_path):
    made = artifact(tmp_path / "x")
    made.write_shard(0, rows(0), {"rows": NUM_ROWS})
    old, young = f".{shard_name(1)}.0a1b2c3d.tmp", f".{shard_name(2)}.4e5f6a7b.tmp"
    for name, age_seconds in ((old, 700), (young, 30), ("other.tmp", 700), (".hidden", 700)):
        (tmp_path / "x" / name).write_bytes(b"PAR1")
        then = time.time() - age_seconds
        os.utime(tmp_path / "x" / name, (then, then))
    assert list(made.finished_shards()) == [0]
    assert made.folder.names() == sorted([young, ".hidden", "other.tmp", shard_name(0)])


class FlakyFolder(Folder):
    """A folder whose storage fails a few times, like a network."""

    failures = 0

    def _open(self):
        if FlakyFolder.failures > 0:
            FlakyFolder.failures -= 1
            raise OSError(errno.EIO, "as the test requests")
        return super()._open()


def test_an_outage_while_reading_is_not_a_damaged_shard(tmp_path, monkeypatch, caplog):
    artifact(tmp_path / "x").write_shard(0, rows(0), {"rows": NUM_ROWS})
    flaky = replace(artifact(tmp_path / "x"), folder=FlakyFolder(str(tmp_path / "x")))
    for read in (flaky.finished_shards, lambda: flaky.read_shard(0), flaky.manifest):
        monkeypatch.setattr(FlakyFolder, "failures", 2)
        with caplog.at_level(logging.WARNING):
            read()
        assert FlakyFolder.failures == 0
    assert flaky.folder.names() == [shard_name(0)]
    monkeypatch.setattr(FlakyFolder, "failures", 1000)
    with pytest.raises(StorageError, match="Input/output error; fix the storage"):
        flaky.folder.without_retry().read_table(shard_name(0))


def test_an_unreachable_tracking_server_does_not_hide_why_a_run_failed(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://127.0.0.1:9"
    Tracker(uri, "0", RunHandle(uri, "a" * 32), "demo").end(failed=True)
