"""What is said while nothing gets done: not at once, ever more rarely, and no longer once something was done."""

import time

import pytest

from profuser.errors import StorageError
from ray_jobs.runtime import stalls
from ray_jobs.runtime.stalls import StallWatch


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stalls, "time", clock)
    return clock


def told(clock, watch, capsys, seconds):
    """The lines of so many seconds of which each is looked at."""
    for _ in range(seconds):
        clock.now += 1.0
        watch.check()
    return capsys.readouterr().out.splitlines()


def test_it_speaks_after_a_minute_and_ever_more_rarely(clock, capsys):
    watch = StallWatch("collect/a", lambda: "it waits")
    assert not told(clock, watch, capsys, 59)
    said = told(clock, watch, capsys, 1000)
    assert said == [
        f"collect/a: nothing done for {after}; it waits" for after in ("1:00", "2:00", "4:00", "8:00", "16:00")
    ]


def test_what_is_done_in_time_and_what_takes_as_long_each_time_is_no_stall(clock, capsys):
    watch = StallWatch("collect/a", lambda: "it waits")
    for _ in watch.over(range(5)):
        assert not told(clock, watch, capsys, 29)
    watch.moved()
    assert len(told(clock, watch, capsys, 100)) == 1
    for _ in watch.over(range(5)):
        assert not told(clock, watch, capsys, 199)
    assert told(clock, watch, capsys, 250) == ["collect/a: nothing done for 6:38; it waits"]


def test_where_the_cause_cannot_be_told_it_says_why(clock, capsys):
    def why():
        raise StorageError("the bucket is away")

    watch = StallWatch("collect/a", why)
    assert told(clock, watch, capsys, 60) == [
        "collect/a: nothing done for 1:00; why cannot be told (the bucket is away)"
    ]


def test_its_thread_speaks_by_itself_and_ends(capsys, monkeypatch):
    monkeypatch.setattr(stalls, "FIRST_SECONDS", 0.1)
    with StallWatch("collect/a", lambda: "it waits") as watch:
        time.sleep(1.0)
    assert "collect/a: nothing done for 0:00; it waits" in capsys.readouterr().out
    watch._thread.join(5)
    assert not watch._thread.is_alive()
