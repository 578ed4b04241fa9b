"""How the driver of a stage and its training workers talk: progress one way, the wish to stop the other."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ray_jobs.cluster import beside_the_driver
from ray_jobs.progress import Counter

POLL_SECONDS = 1.0


class _Board:
    """Holds how far the first worker is, and whether training shall stop."""

    def __init__(self):
        self.plan: tuple[int, int] | None = None
        self.last: dict[str, float] | None = None
        self.stopping = False

    def begin(self, step: int, num_steps: int) -> None:
        """Sets where training begins, and how many updates there are in all."""
        self.plan = (step, num_steps)

    def post(self, record: dict[str, float]) -> None:
        """Sets what the last update did."""
        self.last = record

    def read(self) -> tuple[tuple[int, int] | None, dict[str, float] | None]:
        """The plan and the last update; None before there are any."""
        return self.plan, self.last

    def stop(self) -> None:
        """Asks for a checkpoint and an end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Whether it was asked for."""
        return self.stopping


class StopWish:
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
    """Shows what stands on a board while training runs, and hands on SIGTERM as the wish to stop."""

    def __init__(self) -> None:
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
        plan, told = None, False
        while plan is None and not self._ended.wait(POLL_SECONDS):
            told = self._tell(told)
            plan, _ = ray.get(self.board.read.remote())
        if plan is None:
            return
        with Counter("fuse", plan[1], "steps", plan[0]) as counter:
            while not self._ended.wait(POLL_SECONDS):
                told = self._tell(told)
                _, last = ray.get(self.board.read.remote())
                if last is not None:
                    counter.reach(int(last["step"]) + 1, _words(last))

    def _tell(self, told: bool) -> bool:
        if self.stopped and not told:
            self.board.stop.remote()
        return self.stopped


def _words(record: dict[str, float]) -> str:
    losses = " ".join(f"{key[:-5]} {value:.3f}" for key, value in record.items() if key.endswith("_nats"))
    skipped = f", {record['skipped_steps']:.0f} skipped" if record["skipped_steps"] else ""
    return f"{losses} nats/token, {record['tokens_per_second']:,.0f} tokens/s{skipped}"
