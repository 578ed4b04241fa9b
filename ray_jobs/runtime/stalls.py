"""Says what a stage waits for while nothing of it gets done: places in the cluster, models that load, work that takes long."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import ray
from ray.exceptions import RayError

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.stage_time import num_holders
from profuser.errors import StorageError
from ray_jobs.runtime.progress import format_clock, print_line

Item = TypeVar("Item")
FIRST_SECONDS = 60.0
"""Without anything done for so long, a stage says why."""


class StallWatch:
    """Within a `with`: prints a line when nothing was done for a minute, or twice as long as ever before; then ever more rarely.

    Args:
        title: what is being done, e.g. `collect/llama`.
        why: says what it waits for.
    """

    def __init__(self, title: str, why: Callable[[], str]):
        self.title, self.why = title, why
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"stalls of {title}", daemon=True)
        self._since, self._longest, self._patience = time.monotonic(), 0.0, FIRST_SECONDS

    def __enter__(self) -> "StallWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: it may be asking a cluster that no longer answers.
        self._ended.set()

    def moved(self) -> None:
        """Something was done."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._since, self._patience = now, max(FIRST_SECONDS, 2 * self._longest)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; with each, something was done."""
        for item in items:
            self.moved()
            yield item

    def check(self) -> None:
        """Prints the line where it is due."""
        still = time.monotonic() - self._since
        if still < self._patience:
            return
        self._patience *= 2
        try:
            why = self.why()
        except (RayError, StorageError, OSError, ValueError) as error:
            why = f"why cannot be told ({' '.join(str(error).split())[:100]})"
        if not self._ended.is_set():
            print_line(f"{self.title}: nothing done for {format_clock(still)}; {why}")

    def _watch(self) -> None:
        while not self._ended.wait(FIRST_SECONDS / 60):
            self.check()


def describe_workers(artifact: Artifact, began: float, resources: dict[str, float], what: str) -> Callable[[], str]:
    """What is known of the processes that hold devices for a stage.

    Args:
        artifact: what the stage makes.
        began: when this attempt at it began, in seconds since the epoch.
        resources: what each process asks the cluster for.
        what: the processes, in the plural, e.g. `actors`.
    """
    asked = {name: number for name, number in resources.items() if number}

    def why() -> str:
        placed, loaded = num_holders(artifact, began)
        if placed:
            return f"{what} that have got their place: {placed}, that have loaded: {loaded}"
        have, free = ray.cluster_resources(), ray.available_resources()
        need = ", ".join(f"{number:g} {name}" for name, number in asked.items())
        room = ", ".join(f"{free.get(name, 0):g} of {have.get(name, 0):g} {name}" for name in asked)
        return f"no {what} have got their place yet: each wants {need}; free in the cluster: {room}"

    return why
