"""Times several ways of doing one thing by turns, so that the machine's noise falls on all of them alike."""

import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    name: str
    seconds: float
    figure: str
    memory: str = ""


def by_turns(ways, rounds=5):
    """Median seconds of each way; each runs once before to warm up."""
    seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
