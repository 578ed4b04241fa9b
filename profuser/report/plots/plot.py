"""Plots of scores, teachers and alignment coverage: `figure = plot(facts)`, or None if there is no data."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts
from profuser.report.measures import METRICS, Metric
from profuser.report.plots.style import LIGHT, MODE_HATCHES, Theme, new_figure, styled
from profuser.report.tables.table import percent
from profuser.run.stages import FUSED, TARGET
from profuser.signals.rules import RULES

MOST_CATEGORIES = 16
"""Maximum number of categories in a picture; the tables have all of them."""
LONGEST_NAME = 22
SOURCE_MARKERS = "s^Dv<>pXP"


def scores_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots both metrics per category: a dot per model, and a line from the target before fusion to the fused model."""
    if not facts.num_rows():
        return None
    categories = facts.categories[:MOST_CATEGORIES]
    with styled(theme):
        figure = new_figure(1.5 + 2 * (0.55 + 0.27 * len(categories)))
        panels: Any = figure.subplots(2, 1)
        for axes, metric in zip(panels, METRICS, strict=True):
            _dots(axes, facts, metric, categories, theme)
        left_out = len(facts.categories) - len(categories)
        more = f"\n{left_out} more categories in the tables" if left_out else ""
        figure.suptitle(f"Held-out scores, n = {facts.num_rows():,} rows{more}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _dots(axes: Axes, facts: RunFacts, metric: Metric, categories: Sequence[str], theme: Theme) -> None:
    sources = [model for model in facts.models if model not in (TARGET, FUSED)]
    for model in facts.models:
        values = [metric.of(facts.score(model, category)) for category in categories]
        if model in sources:
            index = sources.index(model)
            look = {
                "s": 30,
                "marker": SOURCE_MARKERS[index % len(SOURCE_MARKERS)],
                "color": theme.others[index % len(theme.others)],
                "alpha": 0.75,
                "zorder": 3,
            }
        else:
            fill = theme.background if model == TARGET else theme.models[FUSED]
            look = {"s": 46, "marker": "o", "facecolors": fill, "edgecolors": theme.models[model], "zorder": 4}
        axes.scatter(values, range(len(categories)), label=facts.label(model), **look)
    for place, category in enumerate(categories):
        ends = [metric.of(facts.score(model, category)) for model in (TARGET, FUSED)]
        axes.plot(ends, [place, place], color=theme.models[FUSED], linewidth=1.6, zorder=2)
    axes.set_yticks(range(len(categories)), [f"{cut(name)} ({facts.num_rows(name):,})" for name in categories])
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlabel(f"{metric.title} ({metric.hint})")
    axes.grid()


def who_wins_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots the share of each mode's examples that each source teaches."""
    wins = facts.wins()
    totals = {mode: sum(getattr(row, mode) for row in wins) for mode in MODES}
    if not any(totals.values()):
        return None
    with styled(theme):
        figure = new_figure(1.35 + 0.55 * len(wins))
        axes = figure.subplots()
        for offset, mode in zip((-0.2, 0.2), MODES, strict=True):
            numbers = [getattr(row, mode) for row in wins]
            places = [place + offset for place in range(len(wins))]
            label = f"{mode} mode, n = {totals[mode]:,}"
            look: dict[str, Any] = {
                "color": theme.modes[mode],
                "hatch": MODE_HATCHES[mode],
                "edgecolor": theme.background,
            }
            _bars(axes, places, numbers, height=0.36, linewidth=0, label=label, **look)
        axes.set_yticks(range(len(wins)), [cut(facts.source_label(row.source)) for row in wins])
        axes.set_ylim(len(wins) - 0.5, -0.5)
        axes.set_xlabel("share of the mode's examples, %")
        figure.suptitle(f"Who teaches what, n = {facts.selection_counts.get('rows', 0):,.0f} corpus rows")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def coverage_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots the share of the target's response tokens per alignment rule."""
    coverage = facts.coverage()
    if not coverage:
        return None
    places = range(len(coverage))
    with styled(theme):
        figure = new_figure(0.9 + 0.45 * len(coverage))
        axes = figure.subplots()
        colours = [theme.text if rule == "none" else theme.modes["training"] for rule in coverage]
        _bars(axes, places, list(coverage.values()), height=0.6, color=colours)
        axes.set_yticks(places, [f"{rule}:\n{RULES[rule].meaning}" for rule in coverage], fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlabel("share of response tokens, %")
        figure.suptitle(f"Alignment, n = {sum(coverage.values()):,} response tokens")
    return figure


def _bars(axes: Axes, places: Sequence[float], numbers: Sequence[int], **look: Any) -> None:
    """Draws horizontal bars of shares in percent, each with its value."""
    total = sum(numbers)
    shares = [100 * number / total if total else 0.0 for number in numbers]
    bars = axes.barh(places, shares, **look)
    axes.bar_label(bars, [percent(number, total) for number in numbers], padding=3, fontsize=9)
    axes.margins(x=0.25)
    axes.grid(axis="x")


def cut(name: str) -> str:
    """Shortens a name to one line that leaves room for the plot."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
