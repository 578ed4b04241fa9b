"""Defines the metrics of a report: format, direction, and the comparison of the fused model with the target."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from profuser.evaluation.heldout import Score
from profuser.evaluation.statistics import Difference, Estimate
from profuser.report.facts import ALL, ModelDifference, RunFacts
from profuser.run.stages import FUSED, TARGET


@dataclass(frozen=True)
class Metric:
    """Format and direction of a metric."""

    name: str
    unit: str
    """Text after a value in a sentence."""
    hint: str
    """Direction in words, e.g. "lower is better"."""
    of: Callable[[Score], float]
    decimals: int
    """Decimals shown; two values that round to the same text count as equal."""
    higher_is_better: bool

    @property
    def title(self) -> str:
        """Name with its unit."""
        return f"{self.name},{self.unit}" if self.unit else self.name

    @property
    def key(self) -> str:
        """Name in machine-readable files."""
        return self.name.replace(" ", "_")

    def text(self, value: float, sign: bool = False) -> str:
        """Formats a value, or a change with its sign, for a table; a dash if it is not finite."""
        if not math.isfinite(value):
            return "-"
        shown = round(value, self.decimals) + 0.0  # no minus zero
        return f"{shown:{'+' if sign and shown else ''}.{self.decimals}f}"

    def interval(self, found: Difference | Estimate) -> str:
        """Formats both ends of a 95 % interval, with signs if it belongs to a difference."""
        sign = isinstance(found, Difference)
        return f"{self.text(found.low, sign)} to {self.text(found.high, sign)}"

    def verdict(self, before: float, after: float) -> str:
        """Returns `better`, `worse`, `no change`, or `unknown` if one of the values is not finite."""
        if not (math.isfinite(before) and math.isfinite(after)):
            return "unknown"
        if self.text(before) == self.text(after):
            return "no change"
        return "better" if (after > before) == self.higher_is_better else "worse"


BITS_PER_BYTE = Metric("bits per byte", "", "lower is better", lambda s: s.bits_per_byte, 3, False)
EXACT_MATCH = Metric("exact match", " %", "higher is better", lambda s: 100 * s.exact_match, 1, True)
METRICS = (BITS_PER_BYTE, EXACT_MATCH)
SCORE = Metric("score", " %", "higher is better", lambda s: math.nan, 1, True)
"""Metric of a benchmark score or a judged win rate: already in percent, and undefined for held-out rows."""


@dataclass(frozen=True)
class Change:
    """Value of one metric for the target before fusion and for the fused model."""

    metric: Metric
    before: float
    after: float
    comparison: ModelDifference | None = None
    """Difference with its interval, if the items are known."""

    @classmethod
    def of(cls, facts: RunFacts, metric: Metric, category: str = ALL) -> "Change":
        """Builds the change on one category."""
        before, after = (metric.of(facts.score(model, category)) for model in (TARGET, FUSED))
        return cls(metric, before, after, facts.comparison(metric.name, TARGET, category))

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no change`, `within noise` (only with an interval) or `unknown`."""
        seen = self.metric.verdict(self.before, self.after)
        return seen if self.comparison is None or seen in ("unknown", "no change") else self.comparison.verdict

    @property
    def better_model(self) -> str | None:
        """Name of the better model; None if neither is better."""
        return {"better": FUSED, "worse": TARGET}.get(self.verdict)

    @property
    def interval(self) -> str:
        """Ends of the difference's interval as text; empty if unknown."""
        return self.metric.interval(self.comparison.difference) if self.comparison else ""

    @property
    def text(self) -> str:
        """Difference of the rounded values, as text."""
        shown = (round(value, self.metric.decimals) for value in (self.after, self.before))
        return self.metric.text(next(shown) - next(shown), sign=True)


def p_text(p_value: float) -> str:
    """Formats a p-value for a table."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"
