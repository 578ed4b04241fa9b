"""Figures with their spread over answers.

Legend: R answers.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tests.benchmarks.measure import Row


@dataclass(frozen=True)
class Figure(Row):
    """A figure with the 95 % interval of a bootstrap over answers, and its number of items."""

    low: float | None = None
    high: float | None = None
    num: int | None = None


def interval(parts: Float[np.ndarray, "R"], wholes: Float[np.ndarray, "R"]) -> tuple[float, float]:
    """Returns the 95 % interval of `sum(parts) / sum(wholes)` over resampled answers."""
    chosen = np.random.default_rng(0).integers(0, len(parts), (2000, len(parts)))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = parts[chosen].sum(1) / wholes[chosen].sum(1)
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def ratio(name: str, parts: Any, wholes: Any, unit: str, **more: Any) -> Figure:
    """Returns the figure `sum(parts) / sum(wholes)` with its interval."""
    parts, wholes = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    low, high = interval(parts, wholes)
    options: dict[str, Any] = {"num": int(wholes.sum())} | more
    return Figure(name, float(parts.sum() / wholes.sum()), unit, low=low, high=high, **options)


class Table:
    """Sums per answer, by pair and name."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, pair: str, **values: float) -> None:
        for name, value in values.items():
            self.values[pair, name].append(float(value))

    def names(self) -> list[str]:
        return list(dict.fromkeys(pair for pair, _ in self.values))

    def __call__(self, pair: str, name: str) -> Float[np.ndarray, "R"]:
        return np.array(self.values[pair, name])
