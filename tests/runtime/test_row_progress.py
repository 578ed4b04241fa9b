"""Progress within shards: lines advance while shards are in progress, and finished shards are counted once."""

import pytest

from ray_jobs.runtime import progress, row_progress, stalls
from ray_jobs.runtime.progress import Counter
from ray_jobs.runtime.row_progress import RowProgress, RowReporter, ShardKey
from ray_jobs.runtime.stalls import StallWatch

A, B, HELDOUT = ShardKey("process", 0), ShardKey("process", 1), ShardKey("evaluate", 0)


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


class Remote:
    """A method of an actor, called at once."""

    def __init__(self, method):
        self.remote = method


class Board:
    """An actor's handle without Ray."""

    def __init__(self):
        self.board = row_progress._RowBoard()

    def __getattr__(self, name):
        return Remote(getattr(self.board, name))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress, row_progress, stalls):
        monkeypatch.setattr(module, "time", clock)
    return clock


def shown(clock, total, reports, before=0):
    """Shows reports of `(seconds, rows, tokens)` or finished shards `(seconds, key, rows)`."""
    with Counter("collect/a", total, "rows", before) as counter:
        rows = RowProgress("collect/a", counter, StallWatch("collect/a", lambda: "it waits"), None)
        for at, *report in reports:
            clock.now = float(at)
            rows.finished(*report) if isinstance(report[0], ShardKey) else rows.reported(*report)
        return counter


def test_a_slow_shard_shows_rows_rate_and_time_left(clock, capsys):
    shown(
        clock,
        512,
        [
            (30, {}, None),  # it loads for half a minute
            (31, {}, 0),
            (41, {}, 800),
            (51, {A: 10}, 1800),
            (61, {A: 40, B: 20}, 2800),
        ],
    )
    assert capsys.readouterr().out.splitlines() == [
        "collect/a: 0/512 rows; 80 tokens/s",
        "collect/a: 10/512 rows, 0.5 rows/s; 90 tokens/s",  # too few to say how long the others take
        "collect/a: 60/512 rows, 2.0 rows/s, 3:46 left; 93 tokens/s",
    ]


def test_finished_shards_count_once_and_a_shard_that_begins_again_counts_from_its_beginning(clock, capsys):
    reports = [(1, {}, 1), (11, {A: 200, B: 3}, 9), (12, A, 256), (22, {A: 200, B: 100}, 30), (33, {A: 200, B: 1}, 2)]
    counter = shown(clock, 1000, [*reports, (44, HELDOUT, 8)], before=100)
    assert counter.done == 100 + 256 + 1 + 8
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out] == ["100", "303/1,000", "456/1,000", "357/1,000", "365/1,000"]
    assert not any("-" in line for line in out)


def test_tokens_are_progress_although_no_row_is_done(clock, capsys):
    with Counter("collect/a", 9, "rows") as counter:
        watch = StallWatch("collect/a", lambda: "it waits")
        rows = RowProgress("collect/a", counter, watch, None)
        for second in range(200):
            clock.now += 1.0
            rows.reported({}, min(second, 100))
            watch.check()
    out = capsys.readouterr().out.splitlines()
    assert sum("nothing done" in line for line in out) == 1, "once, a minute after the last token"


def test_an_actor_reports_shares_of_a_shard_no_more_than_once_a_second(clock):
    board = Board()
    reporter = RowReporter("collect/a", "actor", board)
    count = reporter.shard(A, num_rows=100, num_answers=4)
    reports = []
    for _ in range(6):
        clock.now += 0.6
        count()
        reports.append(board.board.read("collect/a")[0].get(A))
    assert reports == [25, 25, 75, 75, 100, 100], "never more rows than the shard has"


def test_an_engines_tokens_are_added_over_actors_and_forgotten_with_the_next_attempt(clock):
    board = Board()
    for name, tokens in (("x", 5), ("y", 7)):
        reporter = RowReporter("collect/a", name, board)
        reporter.tokens(type("Engine", (), {"num_tokens": tokens}), 3)
        reporter.tokens(object(), 0)  # an engine that does not count them
    assert board.board.read("collect/a") == ({}, 12)
    assert board.board.read("collect/b") == ({}, None)
    board.board.begin("collect/a")
    assert board.board.read("collect/a") == ({}, None)
