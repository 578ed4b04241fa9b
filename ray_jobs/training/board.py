"""How the driver of a stage and its training workers talk: progress one way, the wish to stop the other."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from profuser.artifacts.artifact import Artifact
from ray_jobs.runtime.cluster import beside_the_driver
from ray_jobs.runtime.progress import Counter, print_line
from ray_jobs.runtime.stage_metrics import TrainingMetrics
from ray_jobs.runtime.stalls import StallWatch

POLL_SECONDS = 1.0


class _Board:
    """Holds how far the first worker is, and whether training shall stop."""

    def __init__(self):
        self.plan: tuple[int, int, str] | None = None
        self.unread: list[dict[str, float]] = []
        self.stopping = False

    def begin(self, step: int, num_steps: int, words: str) -> None:
        """Sets the first update, the number of all updates, and a line that the driver prints."""
        self.plan = (step, num_steps, words)

    def post(self, record: dict[str, float]) -> None:
        """Puts up what an update did."""
        self.unread.append(record)

    def read(self) -> tuple[tuple[int, int, str] | None, list[dict[str, float]]]:
        """The plan, None before there is one, and the updates since the last reading."""
        records, self.unread = self.unread, []
        return self.plan, records

    def stop(self) -> None:
        """Asks for a checkpoint and an end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Whether it was asked for."""
        return self.stopping


class StopRequest:
    """Asks a board whether to stop without ever waiting for the answer."""

    def __init__(self, board: Any):
        self.board = board
        self._asked = board.is_stopping.remote()

    def __call__(self) -> bool:
        """The newest answer that is there."""
        if not ray.wait([self._asked], timeout=0)[0]:
            return False
        answer: Any = ray.get(self._asked)
        self._asked = self.board.is_stopping.remote()
        return answer


class Watch:
    """Shows and tells Prometheus what stands on a board while training runs, and hands on SIGTERM as the wish to stop.

    Args:
        artifact: what training makes.
        why: says what training waits for, where it does not begin.
    """

    def __init__(self, artifact: Artifact, why: Callable[[], str]) -> None:
        self.why = why
        self.metrics = TrainingMetrics(artifact)
        # Beside the driver: another node may go while training goes on.
        self.board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=beside_the_driver()).remote()
        self.stopped = False
        """Whether SIGTERM came."""
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the body, the first SIGTERM asks for a checkpoint; a second one ends the driver at once."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        in_main = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGTERM, self._on_sigterm) if in_main else None
        try:
            yield
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)
            self._ended.set()
            watcher.join()

    def _on_sigterm(self, number: int, _: object) -> None:
        if self.stopped:
            raise SystemExit(128 + number)
        self.stopped = True

    def _watch(self) -> None:
        with ExitStack() as stack:
            counter: Counter | None = None
            stalls = stack.enter_context(StallWatch("fuse", self.why))
            ended = told = False
            while not ended:
                ended = self._ended.wait(POLL_SECONDS)
                told = self._tell(told)
                plan, records = ray.get(self.board.read.remote())
                if plan is not None:
                    stalls.moved()
                    if counter is None:
                        print_line(f"fuse: {plan[2]}")
                        counter = stack.enter_context(Counter("fuse", plan[1], "steps", plan[0]))
                for record in records:
                    self.metrics.update(record)
                if counter and records:
                    counter.reach(int(records[-1]["step"]) + 1, _words(records[-1]))

    def _tell(self, told: bool) -> bool:
        if self.stopped and not told:
            self.board.stop.remote()
        return self.stopped


def _words(record: dict[str, float]) -> str:
    losses = " ".join(f"{key[:-5]} {value:.3f}" for key, value in record.items() if key.endswith("_nats"))
    skipped = f", {record['skipped_steps']:.0f} skipped" if record["skipped_steps"] else ""
    return f"{losses} nats/token, {record['tokens_per_second']:,.0f} tokens/s{skipped}"
