"""Stall messages: after a delay, at growing intervals, and no longer once there is progress."""

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


def stall_lines(clock, watch, capsys, seconds):
    """Returns the lines printed while the watch is checked once a second for `seconds` seconds."""
    for _ in range(seconds):
        clock.now += 1.0
        watch.check()
    return capsys.readouterr().out.splitlines()


def test_a_stall_is_reported_after_a_minute_and_at_doubling_intervals(clock, capsys):
    watch = StallWatch("collect/a", lambda: "it waits")
    assert not stall_lines(clock, watch, capsys, 59)
    lines = stall_lines(clock, watch, capsys, 1000)
    assert lines == [
        f"collect/a: nothing done for {after}; it waits" for after in ("1:00", "2:00", "4:00", "8:00", "16:00")
    ]


def test_steady_progress_is_no_stall_even_when_slow(clock, capsys):
    watch = StallWatch("collect/a", lambda: "it waits")
    for _ in watch.over(range(5)):
        assert not stall_lines(clock, watch, capsys, 29)
    watch.moved()
    assert len(stall_lines(clock, watch, capsys, 100)) == 1
    for _ in watch.over(range(5)):
        assert not stall_lines(clock, watch, capsys, 199)
    assert stall_lines(clock, watch, capsys, 250) == ["collect/a: nothing done for 6:38; it waits"]


def test_an_unknown_cause_is_reported_with_its_error(clock, capsys):
    def why():
        raise StorageError("the bucket is away")

    watch = StallWatch("collect/a", why)
    assert stall_lines(clock, watch, capsys, 60) == [
        "collect/a: nothing done for 1:00; cause unknown (the bucket is away)"
    ]


def test_the_thread_reports_automatically_and_ends(capsys, monkeypatch):
    monkeypatch.setattr(stalls, "FIRST_SECONDS", 0.1)
    with StallWatch("collect/a", lambda: "it waits") as watch:
        time.sleep(1.0)
    assert "collect/a: nothing done for 0:00; it waits" in capsys.readouterr().out
    watch._thread.join(5)
    assert not watch._thread.is_alive()
