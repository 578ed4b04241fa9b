"""One driver per run: a second one refuses, a dead one does not block, one taken for dead stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from profuser.artifacts import lock_holder as run_holder
from profuser.artifacts.lock import TAKING_FILE, RunLock
from profuser.artifacts.lock_holder import LOCK, Holder
from profuser.errors import ProfuserError, UserError
from profuser.storage.folder import Folder

# A driver process: waits for the file `go`, locks the run, prints `held`, and runs until it gets a signal.
DRIVER = """
import pathlib, signal, sys, time
from profuser.errors import ProfuserError
from profuser.artifacts.lock import TAKING_FILE, RunLock
from profuser.storage.folder import Folder

class ObjectStore(Folder):
    is_local = False

# A shell that starts tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, is_local, heartbeat, stale = sys.argv[1], sys.argv[2] == "local", float(sys.argv[3]), float(sys.argv[4])
print("ready", flush=True)
while not pathlib.Path(folder).with_name("go").exists():
    time.sleep(0.001)
try:
    with RunLock((Folder if is_local else ObjectStore).at(folder), heartbeat, stale, settle_seconds=2.0):
        print("held", flush=True)
        time.sleep(60)
except ProfuserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "go").touch()
    return Folder.at(tmp_path / "run")


@pytest.fixture
def drivers():
    """Starts drivers; those still running are killed at the end."""
    started = []

    def start(folder, kind="local", heartbeat=0.2, stale=60.0):
        command = [sys.executable, "-c", DRIVER, folder.uri, kind, str(heartbeat), str(stale)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def held(process):
    """Waits until a driver holds its run."""
    assert process.stdout.readline() == "held\n", process.stderr.read()


def elsewhere(**changes):
    """Returns the lock of a driver on another host."""
    return replace(Holder.new(), host="far", pid=1, machine="far boot pid:[1]", process_start="5", **changes)


def write(folder, holder, age_seconds=0.0):
    folder.write_bytes(LOCK, holder.data())
    then = time.time() - age_seconds
    os.utime(folder.path(LOCK), (then, then))


def test_the_lock_names_its_holder_and_is_deleted_at_the_end(folder):
    with RunLock(folder):
        content = folder.read_json(LOCK)
        assert content["pid"] == os.getpid()
        assert run_holder.read_holder(folder).is_gone() is False
    with pytest.raises(ZeroDivisionError), RunLock(folder):
        _ = 1 / 0
    assert folder.names() == []


def test_a_second_driver_refuses_and_names_the_first(folder, drivers):
    first = drivers(folder)
    held(first)
    second = drivers(folder)
    assert second.wait(20) == 2
    message = second.stderr.read()
    assert f"pid {first.pid}, since 20" in message
    assert "wait for it or stop it" in message
    assert message.count("\n") == 1
    assert first.poll() is None


def test_a_killed_driver_does_not_block_the_next(folder, drivers):
    first = drivers(folder)
    held(first)
    first.kill()
    first.wait()
    assert folder.exists(LOCK)
    start = time.monotonic()
    with RunLock(folder) as lock:
        lock.check()
    assert time.monotonic() - start < 5


def test_a_reused_pid_does_not_block(folder):
    write(folder, replace(Holder.new(), process_start="1"))
    with RunLock(folder) as lock:
        lock.check()


def test_a_held_lock_calls_on_heartbeat(folder):
    beat = threading.Event()
    with RunLock(folder, heartbeat_seconds=0.05, on_heartbeat=beat.set):
        assert beat.wait(10)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_gets_a_signal_deletes_its_lock(folder, drivers, ending):
    driver = drivers(folder)
    held(driver)
    driver.send_signal(ending)
    assert driver.wait(20) != 0
    assert folder.names() == []


@pytest.mark.parametrize("before", ["nothing", "a dead lock"])
@pytest.mark.parametrize("kind", ["local", "object store"])
def test_one_of_eight_concurrent_drivers_wins(tmp_path, drivers, kind, before):
    folder = Folder.at(tmp_path / "run")
    if before == "a dead lock":
        write(folder, elsewhere(), age_seconds=100)
    processes = [drivers(folder, kind) for _ in range(8)]
    (tmp_path / "go").touch()
    lost = []
    deadline = time.monotonic() + 60
    while len(lost) < 7 and time.monotonic() < deadline:
        lost = [process for process in processes if process.poll() is not None]
        time.sleep(0.1)
    assert [process.returncode for process in lost] == [2] * 7
    (winner,) = set(processes) - set(lost)
    held(winner)
    # On an object store, a loser may name a driver that later lost to the winner.
    named = f"pid {winner.pid}," if kind == "local" else "is running it"
    assert all(named in process.stderr.read() for process in lost)


@pytest.mark.parametrize("its_clock", ["2001-01-01T00:00:00", "2099-01-01T00:00:00"])
def test_a_stale_lock_of_another_host_is_taken_whatever_its_clock(folder, its_clock):
    write(folder, elsewhere(heartbeat=its_clock), age_seconds=61)
    start = time.monotonic()
    with RunLock(folder) as lock:
        lock.check()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("its_clock", ["2001-01-01T00:00:00", "2099-01-01T00:00:00"])
def test_a_renewed_lock_of_another_host_is_respected(folder, its_clock):
    write(folder, elsewhere(heartbeat=its_clock))
    renewal = threading.Timer(0.5, lambda: write(folder, elsewhere(heartbeat=its_clock + ".5")))
    renewal.start()
    with pytest.raises(UserError, match="host far, pid 1,"), RunLock(folder, heartbeat_seconds=1.0):
        pass
    renewal.join()
    assert run_holder.read_holder(folder).host == "far"


def test_a_lock_of_another_host_is_taken_once_it_is_no_longer_renewed(folder):
    write(folder, elsewhere())
    start = time.monotonic()
    with RunLock(folder, heartbeat_seconds=0.2, stale_seconds=1.5) as lock:
        lock.check()
    assert time.monotonic() - start > 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"pid": 1}'])
def test_an_unreadable_lock_is_judged_by_its_age(folder, content):
    folder.write_bytes(LOCK, content)
    with RunLock(folder, heartbeat_seconds=0.2, stale_seconds=0.5) as lock:
        lock.check()


def test_a_driver_killed_while_taking_the_lock_does_not_block(folder):
    folder.write_bytes(TAKING_FILE, b"")
    then = time.time() - 61
    os.utime(folder.path(TAKING_FILE), (then, then))
    with RunLock(folder, heartbeat_seconds=0.2) as lock:
        lock.check()
    assert folder.names() == []


def test_a_lock_is_renewed(folder):
    with RunLock(folder, heartbeat_seconds=0.1):
        before = folder.read_json(LOCK)["heartbeat"]
        deadline = time.monotonic() + 10
        while folder.read_json(LOCK)["heartbeat"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_suspended_driver_stops_if_another_took_over_its_run(folder, drivers, monkeypatch):
    # It is suspended long before its first renewal: suspended within a renewal, it could undo the takeover.
    sleeper = drivers(folder, heartbeat=2.0)
    held(sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(run_holder, "_machine", lambda: "far boot pid:[1]")
    with RunLock(folder, heartbeat_seconds=0.2, stale_seconds=1.0) as lock:
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(60) == 2
        message = sleeper.stderr.read()
        assert f"was taken over by another driver (host {lock.own.host}, pid {os.getpid()}," in message
        assert message.count("\n") == 1
        lock.check()
    assert folder.names() == []


def test_a_lost_lock_is_detected_by_check_and_left_to_its_new_holder(folder):
    with RunLock(folder) as lock:
        write(folder, elsewhere())
        with pytest.raises(ProfuserError, match=r"taken over by another driver \(host far"):
            lock.check()
    assert json.loads(folder.read_bytes(LOCK))["host"] == "far"


def test_a_deleted_lock_counts_as_lost(folder):
    with RunLock(folder) as lock:
        folder.remove(LOCK)
        with pytest.raises(ProfuserError, match="taken over by someone who deleted its lock"):
            lock.check()
