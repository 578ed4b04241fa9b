"""Connects the driver and the training workers: progress one way, the stop request the other."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from profuser.artifacts.artifact import Artifact
from ray_jobs.runtime.cluster import pin_to_driver_node
from ray_jobs.runtime.progress import Counter, print_line
from ray_jobs.runtime.stage_metrics import TrainingMetrics
from ray_jobs.runtime.stalls import StallWatch

POLL_SECONDS = 1.0


class _TrainingBoard:
    """Actor that holds the first worker's progress and the stop request."""

    def __init__(self):
        self.plan: tuple[int, int, str] | None = None
        self.unread: list[dict[str, float]] = []
        self.stopping = False

    def begin(self, step: int, num_steps: int, words: str) -> None:
        """Sets the first update, the number of all updates, and a line that the driver prints."""
        self.plan = (step, num_steps, words)

    def post(self, record: dict[str, float]) -> None:
        """Adds the record of an update."""
        self.unread.append(record)

    def read(self) -> tuple[tuple[int, int, str] | None, list[dict[str, float]]]:
        """Returns the plan (None before `begin`) and the records since the last read."""
        records, self.unread = self.unread, []
        return self.plan, records

    def stop(self) -> None:
        """Requests a checkpoint and the end of training."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Returns whether a stop was requested."""
        return self.stopping


class StopRequest:
    """Asks a board whether to stop, without waiting for the answer."""

    def __init__(self, board: Any):
        self.board = board
        self._pending = board.is_stopping.remote()

    def __call__(self) -> bool:
        """Returns the newest answer that has arrived."""
        if not ray.wait([self._pending], timeout=0)[0]:
            return False
        answer: Any = ray.get(self._pending)
        self._pending = self.board.is_stopping.remote()
        return answer


class TrainingMonitor:
    """Prints a board's progress and exports it to Prometheus while training runs; turns SIGTERM into a stop request.

    Args:
        artifact: artifact that training makes.
        why: returns what training waits for while it has not begun.
    """

    def __init__(self, artifact: Artifact, why: Callable[[], str]) -> None:
        self.why = why
        self.metrics = TrainingMetrics(artifact)
        # On the driver's node: any other node may disappear during training.
        self.board = ray.remote(num_cpus=0)(_TrainingBoard).options(scheduling_strategy=pin_to_driver_node()).remote()
        self.stopped = False
        """Whether SIGTERM was received."""
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Makes the first SIGTERM in the body request a checkpoint, and a second one end the driver at once."""
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
        """Polls the board every second until training ends, and forwards the stop request to it."""
        with ExitStack() as stack:
            counter: Counter | None = None
            stalls = stack.enter_context(StallWatch("fuse", self.why))
            ended = sent = False
            while not ended:
                ended = self._ended.wait(POLL_SECONDS)
                sent = self._send_stop(sent)
                plan, records = ray.get(self.board.read.remote())
                if plan is not None:
                    stalls.moved()
                    if counter is None:
                        print_line(f"fuse: {plan[2]}")
                        counter = stack.enter_context(Counter("fuse", plan[1], "steps", plan[0]))
                for record in records:
                    self.metrics.update(record)
                if counter and records:
                    counter.reach(int(records[-1]["step"]) + 1, _describe(records[-1]))

    def _send_stop(self, sent: bool) -> bool:
        if self.stopped and not sent:
            self.board.stop.remote()
        return self.stopped


def _describe(record: dict[str, float]) -> str:
    """Formats the losses, speed and skipped steps of an update, for the progress line."""
    losses = " ".join(f"{key[:-5]} {value:.3f}" for key, value in record.items() if key.endswith("_nats"))
    skipped = f", {record['skipped_steps']:.0f} skipped" if record["skipped_steps"] else ""
    return f"{losses} nats/token, {record['tokens_per_second']:,.0f} tokens/s{skipped}"
