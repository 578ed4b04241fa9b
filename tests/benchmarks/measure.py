"""Measures several ways in one run: times taken in turns, so that noise affects all equally, and peak memory."""

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
    """The same figure of the baseline, which the name states."""
    reach: str = ""
    """Target of the ratio or value."""

    @property
    def reached(self) -> bool | None:
        """Returns whether the figure meets its target; None without a target or a baseline.

        `<= 1.1 x` is a target of the ratio; `>= 250,000`, like every other unit, of the value; `0.9 to 1.1 x` is a range.
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
    """Returns the median seconds of each way, after one warm-up run."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def once(way: Callable[[], object]) -> float:
    """Returns the seconds of a single run."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def peak_bytes(way: Callable[[], object]) -> int:
    """Returns how far the process's resident memory rises above its current size (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    before = _status("VmRSS")
    way()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
