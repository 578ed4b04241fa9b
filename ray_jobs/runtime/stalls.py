"""Reports what a stalled stage waits for: cluster resources, models that load, or slow work."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import ray
from ray.exceptions import RayError

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.stage_time import count_device_holders
from profuser.errors import StorageError
from ray_jobs.runtime.progress import format_clock, print_line

Item = TypeVar("Item")
FIRST_SECONDS = 60.0
"""Seconds without progress after which a stage reports why."""


class StallWatch:
    """Within `with`, prints a line after a minute without progress, or twice the longest wait so far; then at doubling intervals.

    Args:
        title: name of the work, e.g. `collect/llama`.
        why: returns what it waits for.
    """

    def __init__(self, title: str, why: Callable[[], str]):
        self.title, self.why = title, why
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"stalls of {title}", daemon=True)
        self._since, self._longest, self._report_after = time.monotonic(), 0.0, FIRST_SECONDS

    def __enter__(self) -> "StallWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: the thread may be querying a cluster that no longer answers.
        self._ended.set()

    def moved(self) -> None:
        """Records progress."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._since, self._report_after = now, max(FIRST_SECONDS, 2 * self._longest)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the same items; records progress with each."""
        for item in items:
            self.moved()
            yield item

    def check(self) -> None:
        """Prints the line if it is due."""
        still = time.monotonic() - self._since
        if still < self._report_after:
            return
        self._report_after *= 2
        try:
            why = self.why()
        except (RayError, StorageError, OSError, ValueError) as error:
            why = f"cause unknown ({' '.join(str(error).split())[:100]})"
        if not self._ended.is_set():
            print_line(f"{self.title}: nothing done for {format_clock(still)}; {why}")

    def _watch(self) -> None:
        while not self._ended.wait(FIRST_SECONDS / 60):
            self.check()


def describe_workers(artifact: Artifact, began: float, resources: dict[str, float], what: str) -> Callable[[], str]:
    """Returns a function that describes the processes that hold devices for a stage.

    Args:
        artifact: artifact that the stage makes.
        began: start of this attempt, in seconds since the epoch.
        resources: resources that each process requests from the cluster.
        what: name of the processes in the plural, e.g. `actors`.
    """
    requested = {name: number for name, number in resources.items() if number}

    def why() -> str:
        placed, loaded = count_device_holders(artifact, began)
        if placed:
            return f"{placed} {what} scheduled, {loaded} loaded"
        have, free = ray.cluster_resources(), ray.available_resources()
        need = ", ".join(f"{number / _unit(name):.3g} {_title(name)}" for name, number in requested.items())
        room = ", ".join(
            f"{free.get(name, 0) / _unit(name):.3g} of {have.get(name, 0) / _unit(name):.3g} {_title(name)}"
            for name in requested
        )
        return f"no {what} scheduled yet: each needs {need}; free in the cluster: {room}"

    return why


def _unit(resource: str) -> float:
    """Returns the size of a resource's unit: Ray counts memory in bytes."""
    return 2.0**30 if resource == "memory" else 1.0


def _title(resource: str) -> str:
    return "GiB of memory" if resource == "memory" else resource
