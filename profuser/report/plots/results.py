"""Plots the differences between fused model and target, with intervals. See plot.py for the form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.evaluation.statistics import BETTER, NOISE, WORSE, Difference
from profuser.report.comparisons import preference
from profuser.report.facts import ALL, RunFacts
from profuser.report.measures import BITS_PER_BYTE, EXACT_MATCH, SCORE, Metric
from profuser.report.plots.plot import MOST_CATEGORIES, cut
from profuser.report.plots.style import LIGHT, Theme, new_figure, styled
from profuser.run.stages import TARGET

MARKERS = {BETTER: "^", NOISE: "o", WORSE: "v"}
POINTS = "percentage points"


@dataclass(frozen=True)
class Gap:
    """The fused model minus the target on one measure and category."""

    label: str
    unit: str
    """`bits per byte` or `percentage points`."""
    difference: Difference
    verdict: str


def gaps(facts: RunFacts) -> list[Gap]:
    """Returns held-out metrics by category, then benchmarks, then the judged win rate at equal length minus 50 %."""
    found = [c for c in facts.comparisons if c.model == TARGET]
    out = []
    for metric in (BITS_PER_BYTE, EXACT_MATCH):
        unit = POINTS if metric.unit else metric.name
        own = [c for c in found if c.measure == metric.name]
        out += [Gap(_label(metric, c.category), unit, c.difference, c.verdict) for c in own]
    out += [Gap(c.measure, POINTS, c.difference, c.verdict) for c in found if c.measure in facts.benchmarks]
    for judge, rates in list(facts.judged.items())[:1]:
        if TARGET in rates:
            even = preference(rates[TARGET].length_controlled)
            out.append(Gap(f"judges ({judge})", POINTS, even, even.verdict(larger_is_better=True)))
    return out


def _label(metric: Metric, category: str) -> str:
    return metric.name if category == ALL else category


def gap_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns the gaps as rows for a CSV."""
    return [{"measure": g.label, "unit": g.unit, **asdict(g.difference), "verdict": g.verdict} for g in gaps(facts)]


def gaps_alt(facts: RunFacts) -> str:
    """Describes the gaps in words, as alternative text."""
    parts = []
    for gap in gaps(facts):
        metric = BITS_PER_BYTE if gap.unit == BITS_PER_BYTE.name else SCORE
        value = metric.text(gap.difference.value, sign=True)
        parts.append(f"{gap.label} {value} {gap.unit} ({metric.interval(gap.difference)}), {gap.verdict}")
    return f"Dots with 95 % intervals: fused model minus target. {'; '.join(parts)}."


def gaps_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots fused model minus target with 95 % intervals, a panel per unit; a dot's shape shows the verdict."""
    found = gaps(facts)
    panels = [own[:MOST_CATEGORIES] for unit in (BITS_PER_BYTE.name, POINTS) if (own := _of(found, unit))]
    if not panels:
        return None
    heights = [len(panel) + 2 for panel in panels]
    with styled(theme):
        figure = new_figure(0.75 + 0.27 * sum(heights))
        axes: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for each, panel in zip(axes, panels, strict=True):
            _intervals(each, panel, theme)
        handles = [
            axes[0].scatter([], [], marker=marker, label=verdict, **_look(verdict, theme))
            for verdict, marker in MARKERS.items()
        ]
        figure.suptitle("Fused model minus target, 95 % intervals")
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _of(found: Sequence[Gap], unit: str) -> list[Gap]:
    return [gap for gap in found if gap.unit == unit]


def _intervals(axes: Axes, panel: Sequence[Gap], theme: Theme) -> None:
    lower = panel[0].unit == BITS_PER_BYTE.name
    for place, gap in enumerate(panel):
        look = _look(gap.verdict, theme)
        axes.plot([gap.difference.low, gap.difference.high], [place, place], color=look["edgecolors"], linewidth=1.8)
        axes.scatter([gap.difference.value], [place], marker=MARKERS[gap.verdict], s=42, zorder=4, **look)
    axes.axvline(0, color=theme.text, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(panel)), [f"{cut(gap.label)} ({gap.difference.num_items:,})" for gap in panel])
    axes.set_ylim(len(panel) - 0.5, -0.5)
    axes.set_xlabel(f"{panel[0].unit} ({'below' if lower else 'above'} 0 is better)")
    axes.grid(axis="x")


def _look(verdict: str, theme: Theme) -> dict[str, Any]:
    colour = {BETTER: theme.modes["training"], WORSE: theme.modes["inference"], NOISE: theme.text}[verdict]
    return {"facecolors": theme.background if verdict == NOISE else colour, "edgecolors": colour}
