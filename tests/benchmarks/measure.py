"""Figures of one run, side by side: times by turns, so that the machine's noise falls on all alike, and peak memory."""

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

REACH = re.compile(r"((?P<how>[<>]=?)|(?P<least>[\d.]+) to) (?P<bound>[\d.,]+)(?P<times> x)?( .*)?")


@dataclass(frozen=True)
class Row:
    """One figure; `ratio` is value over baseline."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    """The same figure of what it is held against, which the name says."""
    reach: str = ""
    """What the project asks of it."""

    @property
    def reached(self) -> bool | None:
        """Whether the figure is what is asked of it; None where nothing is, or there is nothing to hold it against.

        `<= 1.1 x` is asked of the ratio, `>= 250,000` of the value, and so is every other unit; `0.9 to 1.1 x` asks for a range.
        """
        asked = REACH.fullmatch(self.reach)
        figure = self.ratio if asked and asked["times"] else self.value
        if not asked or figure is None:
            return None
        bound = float(asked["bound"].replace(",", ""))
        if asked["least"]:
            return float(asked["least"]) <= figure <= bound
        return {"<": figure < bound, "<=": figure <= bound, ">": figure > bound, ">=": figure >= bound}[asked["how"]]

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.value / self.baseline


def by_turns(ways: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each way; each runs once before to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def once(way: Callable[[], object]) -> float:
    """Seconds of a single run."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def peak_bytes(way: Callable[[], object]) -> int:
    """How far the process's resident memory rises above where it stands now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
    before = _status("VmRSS")
    way()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
