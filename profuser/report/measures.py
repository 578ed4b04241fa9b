"""The metrics of a report: how they are written, which way is better, and how the fused model compares with the target."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from profuser.evaluation.heldout import Score
from profuser.evaluation.statistics import Difference, Estimate
from profuser.report.facts import ALL, ModelDifference, RunFacts
from profuser.run.stages import FUSED, TARGET


@dataclass(frozen=True)
class Metric:
    """How a metric is written, and which way is better."""

    name: str
    unit: str
    """What follows a value in a sentence."""
    hint: str
    """Which way is better, in words."""
    of: Callable[[Score], float]
    decimals: int
    """Also what makes two values equal: a difference that is not shown is none."""
    higher_is_better: bool

    @property
    def title(self) -> str:
        """The name with its unit."""
        return f"{self.name},{self.unit}" if self.unit else self.name

    @property
    def key(self) -> str:
        """The name in files for programs."""
        return self.name.replace(" ", "_")

    def text(self, value: float, sign: bool = False) -> str:
        """A value as a table shows it, or a change with its sign; a dash where it is not known."""
        if not math.isfinite(value):
            return "-"
        shown = round(value, self.decimals) + 0.0  # no minus zero
        return f"{shown:{'+' if sign and shown else ''}.{self.decimals}f}"

    def interval(self, found: Difference | Estimate) -> str:
        """Both ends of a 95 % interval: those of a difference with their signs."""
        sign = isinstance(found, Difference)
        return f"{self.text(found.low, sign)} to {self.text(found.high, sign)}"

    def verdict(self, before: float, after: float) -> str:
        """`better`, `worse`, `no change`, or `unknown` where one of both is not known."""
        if not (math.isfinite(before) and math.isfinite(after)):
            return "unknown"
        if self.text(before) == self.text(after):
            return "no change"
        return "better" if (after > before) == self.higher_is_better else "worse"


BITS_PER_BYTE = Metric("bits per byte", "", "lower is better", lambda s: s.bits_per_byte, 3, False)
EXACT_MATCH = Metric("exact match", " %", "higher is better", lambda s: 100 * s.exact_match, 1, True)
METRICS = (BITS_PER_BYTE, EXACT_MATCH)
SCORE = Metric("score", " %", "higher is better", lambda s: math.nan, 1, True)
"""Of a benchmark, and of a judged win rate: in percent already, and never of held-out rows."""


@dataclass(frozen=True)
class Change:
    """One metric under the target before fusion and under the fused model."""

    metric: Metric
    before: float
    after: float
    comparison: ModelDifference | None = None
    """With its interval, where the items are known."""

    @classmethod
    def of(cls, facts: RunFacts, metric: Metric, category: str = ALL) -> "Change":
        """The change on one category."""
        before, after = (metric.of(facts.score(model, category)) for model in (TARGET, FUSED))
        return cls(metric, before, after, facts.comparison(metric.name, TARGET, category))

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no change`, `within noise` (of a difference with its interval) or `unknown`."""
        seen = self.metric.verdict(self.before, self.after)
        return seen if self.comparison is None or seen in ("unknown", "no change") else self.comparison.verdict

    @property
    def better_model(self) -> str | None:
        """Which of both models is better; None where neither is."""
        return {"better": FUSED, "worse": TARGET}.get(self.verdict)

    @property
    def interval(self) -> str:
        """The ends of the difference's interval; empty where they are not known."""
        return self.metric.interval(self.comparison.difference) if self.comparison else ""

    @property
    def text(self) -> str:
        """The difference of the values as they are shown."""
        shown = (round(value, self.metric.decimals) for value in (self.after, self.before))
        return self.metric.text(next(shown) - next(shown), sign=True)
