"""Samples the memory and CPU time of this process and its children while something runs."""

import threading
import time
from dataclasses import dataclass, field

import psutil

EVERY_SECONDS = 0.5
WARM_UP = 0.1


@dataclass
class Series:
    """Samples of one process during a stage, under one title."""

    name: str
    bytes: list[int] = field(default_factory=list)
    """Resident memory per sample."""
    cpu_seconds: float = 0.0
    """CPU time up to its last sample, from its first sample or its start."""

    @property
    def peak(self) -> int:
        return max(self.bytes)

    @property
    def growth(self) -> int:
        """Peak after the first tenth of the samples, above the value at the end of that tenth."""
        warm = int(WARM_UP * len(self.bytes))
        return max(self.bytes[warm:]) - self.bytes[warm]


class Sampler:
    """Samples within a `with` block; then `series` has one entry per process.

    Ray's workers are identified by their titles, which name what they run; `driver` is this process.
    """

    def __init__(self):
        self.series: list[Series] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        found: dict[tuple[int, str], Series] = {}
        taken: dict[int, float] = {}
        own, start = psutil.Process(), time.time()
        while not self._stop.is_set():
            for process in [own, *own.children(recursive=True)]:
                try:
                    name = "driver" if process == own else _name(process)
                    cpu = sum(process.cpu_times()[:2])
                    before = taken.get(process.pid, 0.0 if process.create_time() > start else cpu)
                    series = found.setdefault((process.pid, name), Series(name))
                    series.bytes.append(process.memory_info().rss)
                    series.cpu_seconds += cpu - before
                    taken[process.pid] = cpu
                except psutil.NoSuchProcess:
                    continue
            time.sleep(EVERY_SECONDS)
        self.series = list(found.values())


def _name(process: psutil.Process) -> str:
    line = process.cmdline()
    title = line[0].rpartition("/")[2] if line else process.name()
    return title.partition("(")[0].removeprefix("ray::")
