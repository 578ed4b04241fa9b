"""Carries the progress within shards from the engines' actors to the driver: rows answered, and tokens read and generated."""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import RayError

from ray_jobs.runtime.cluster import pin_to_driver_node
from ray_jobs.runtime.progress import Counter
from ray_jobs.runtime.stalls import StallWatch

SECONDS = 1.0
"""Interval at which actors report and the driver reads."""
RATE_SECONDS = 30.0
"""Span over which tokens per second are averaged."""
ANSWER_SECONDS = 10.0
"""Time that the board has to answer."""
BOARD = "profuser-rows"
LEAST_ROWS, LEAST_SHARE = 100, 0.1
"""Rows, or the share of all of them if that is less, from which the time left is estimated: an engine works on many rows at once,
and the first to be done say little of the others."""


class ShardKey(NamedTuple):
    """A shard in progress: the worker's method, e.g. `process`, and the shard's number."""

    method: str
    shard: int


class Count(Protocol):
    """Counts answers of a shard."""

    def __call__(self, number: int = 1) -> None:
        """Counts that many."""
        ...


class _RowBoard:
    """Actor with the latest reports of every part of the run."""

    def __init__(self):
        self.rows: dict[str, dict[ShardKey, int]] = {}
        self.tokens: dict[str, dict[str, int]] = {}

    def begin(self, part: str) -> None:
        """Forgets what earlier attempts at a part reported."""
        self.rows[part], self.tokens[part] = {}, {}

    def report_rows(self, part: str, key: ShardKey, rows: int) -> None:
        """Sets how many rows of a shard have been answered."""
        self.rows.setdefault(part, {})[key] = rows

    def report_tokens(self, part: str, actor: str, tokens: int) -> None:
        """Sets how many tokens an actor's engine has processed."""
        self.tokens.setdefault(part, {})[actor] = tokens

    def read(self, part: str) -> tuple[dict[ShardKey, int], int | None]:
        """Returns the rows of each shard, and the tokens of all actors; None before the first report."""
        tokens = self.tokens.get(part)
        return self.rows.get(part, {}), sum(tokens.values()) if tokens else None


class RowReporter:
    """Reports the progress of one actor. Its methods may be called from several threads; they do not wait.

    Args:
        part: name of the stage and part, e.g. `collect/llama`.
        actor: name of the actor, unique in the part.
        board: the board's handle.
    """

    def __init__(self, part: str, actor: str, board: Any):
        self.part, self.actor, self.board = part, actor, board
        self._next_tokens = 0.0

    def shard(self, key: ShardKey, num_rows: int, num_answers: int) -> Count:
        """Returns a function that counts more of a shard's answers, by default one, and reports the same share of its rows."""
        lock = threading.Lock()
        done, due = 0, 0.0

        def count(number: int = 1) -> None:
            nonlocal done, due
            with lock:
                done = min(done + number, num_answers)
                if (now := time.monotonic()) >= due:
                    due = now + SECONDS
                    self.board.report_rows.remote(self.part, key, num_rows * done // num_answers)

        return count

    def tokens(self, engine: Any, num_requests: int) -> None:
        """Reports the engine's tokens; called after each of its steps with the number of requests without a response."""
        tokens = getattr(engine, "num_tokens", None)
        if tokens is not None and ((now := time.monotonic()) >= self._next_tokens or not num_requests):
            self._next_tokens = now + SECONDS
            self.board.report_tokens.remote(self.part, self.actor, tokens)


def row_board(part: str) -> Any:
    """Returns the handle of the run's board, on the driver's node; the first call starts it."""
    options = {"name": BOARD, "get_if_exists": True, "scheduling_strategy": pin_to_driver_node()}
    board = ray.remote(num_cpus=0)(_RowBoard).options(**options).remote()
    board.begin.remote(part)
    return board


class RowProgress:
    """Within `with`, shows finished shards and the board's rows together on a counter, and counts both as progress.

    Args:
        part: name of the stage and part.
        counter: shows the rows; it has those of earlier attempts.
        watch: reports stalls.
        board: the board's handle; None shows finished shards only.
    """

    def __init__(self, part: str, counter: Counter, watch: StallWatch, board: Any):
        self.part, self.counter, self.watch, self.board = part, counter, watch, board
        counter.least = min(LEAST_ROWS, math.ceil(LEAST_SHARE * (counter.total - counter.done)))
        self._finished: dict[ShardKey, int] = {}
        self._reported: Mapping[ShardKey, int] = {}
        self._tokens: deque[tuple[float, int]] = deque()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"rows of {part}", daemon=True)

    def __enter__(self) -> "RowProgress":
        if self.board:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended.set()
        if self.board:
            # The thread may be waiting for a cluster that no longer answers.
            self._thread.join(SECONDS)

    def finished(self, key: ShardKey, rows: int) -> None:
        """Records a finished shard."""
        with self._lock:
            self._finished[key] = rows
            self._show()

    def reported(self, rows: Mapping[ShardKey, int], tokens: int | None) -> None:
        """Records what the board reports; `tokens` is None while no engine has processed any."""
        now = time.monotonic()
        with self._lock:
            if self._ended.is_set():
                return
            if tokens is not None:
                if not self._tokens:
                    self.counter.restart_clock()
                if not self._tokens or self._tokens[-1][1] != tokens:
                    self.watch.moved()
                self._tokens.append((now, tokens))
                while now - self._tokens[0][0] > RATE_SECONDS:
                    self._tokens.popleft()
            self._reported = rows
            self._show()

    def _show(self) -> None:
        rows = {**self._reported, **self._finished}
        self.counter.reach(self.counter.before + sum(rows.values()), self._rate())

    def _rate(self) -> str:
        """Returns the engines' recent speed, for the progress line."""
        if len(self._tokens) < 2:
            return ""
        (start, first), (end, last) = self._tokens[0], self._tokens[-1]
        # A restarted engine begins at 0 again.
        return f"{(last - first) / (end - start):,.0f} tokens/s" if last > first else ""

    def _poll(self) -> None:
        while not self._ended.wait(SECONDS):
            try:
                found: Any = ray.get(self.board.read.remote(self.part), timeout=ANSWER_SECONDS)
            except RayError:
                continue
            self.reported(*found)
