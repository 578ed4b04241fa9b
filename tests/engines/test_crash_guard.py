"""Tests crash isolation with processes that really die: their notes identify the crashing rows and no others."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from profuser.engines.crash_guard import MAX_DEATHS, CrashGuard, EngineDeadError, SharedLock
from profuser.errors import EngineError
from profuser.storage.folder import Folder

NUM_ROWS = 40


def attempt(folder, crashing, fatal, results):
    """Processes a shard in which some rows kill the engine, by a signal or by an exception."""

    def work(rows):
        found = crashing & set(rows)
        if found and fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if found:
            raise EngineDeadError(f"row {min(found)} is poison")
        return [row * 10 for row in rows]

    guard = CrashGuard(Folder.at(folder))
    with guard.shard(0, NUM_ROWS) as one:
        results.put(one.run(work))


def until_done(folder, crashing, fatal):
    """Starts one process after another, as Ray does; returns the result and the number of deaths."""
    # Forks a small process instead of this one with everything that other tests have loaded.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = context.SimpleQueue()
    for deaths in range(MAX_DEATHS + 3):
        process = context.Process(target=attempt, args=(folder, crashing, fatal, results))
        process.start()
        process.join()
        if process.exitcode == 0:
            return *results.get(), deaths
    return None, None, MAX_DEATHS + 3


@pytest.mark.parametrize("fatal", [True, False], ids=["killed", "exception"])
@pytest.mark.parametrize("crashing", [set(), {0}, {39}, {17, 18}, {3, 30}])
def test_crashing_rows_are_found_and_the_others_processed(tmp_path, crashing, fatal):
    values, found, deaths = until_done(tmp_path, crashing, fatal)
    assert values == [row * 10 for row in range(NUM_ROWS) if row not in crashing]
    assert found.keys() == crashing
    assert all(("is poison" in words) != fatal for words in found.values())
    assert deaths <= 2 + 8 * len(crashing)
    assert list(tmp_path.iterdir()) == []


def test_one_death_does_not_start_a_search(tmp_path):
    (tmp_path / "shard-00000.json").write_text(json.dumps({"deaths": 0}))
    calls = []
    with CrashGuard(Folder.at(tmp_path)).shard(0, 5) as one:
        assert not one.searching
        one.run(lambda rows: calls.append(rows) or rows)
    assert calls == [[0, 1, 2, 3, 4]]


def test_a_shard_that_always_dies_is_abandoned_with_the_last_message(tmp_path):
    (tmp_path / "shard-00000.json").write_text(json.dumps({"deaths": MAX_DEATHS, "last_words": "no memory"}))
    with (
        pytest.raises(EngineError, match=rf"died {MAX_DEATHS} times on shard 0 \(last message: no memory\)"),
        CrashGuard(Folder.at(tmp_path)).shard(0, 5),
    ):
        pass


def test_an_exclusive_holder_is_alone_in_the_engine():
    lock, inside, most = SharedLock(), [], []

    def enter(kind):
        with getattr(lock, kind)():
            inside.append(kind)
            most.append(list(inside))
            time.sleep(0.02)
            inside.remove(kind)

    kinds = ["shared", "shared", "alone", "shared", "alone", "shared"]
    threads = [threading.Thread(target=enter, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == len(kinds)
    assert all(len(together) == 1 for together in most if "alone" in together)
    assert ["shared", "shared"] in most


def test_a_note_of_an_older_version_is_read(tmp_path):
    note = {"deaths": 3, "trying": [7, 8], "suspects": [], "guilty": {"5": "poison"}, "last_words": "it died"}
    (tmp_path / "shard-00000.json").write_text(json.dumps(note))
    with CrashGuard(Folder.at(tmp_path)).shard(0, 9) as attempt:
        results, crashing = attempt.run(lambda rows: rows)
    assert (results, crashing) == ([0, 1, 2, 3, 4, 6, 8], {5: "poison", 7: "it died"})
