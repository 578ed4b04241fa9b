"""Plots an ablation: both metrics of every arm, the seeds as small dots and their mean as a large one."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.ablation.results import Measured, Results
from profuser.report.measures import METRICS, Metric
from profuser.report.plots.style import LIGHT, Theme, new_figure, styled
from profuser.run.stages import FUSED

LINES = ("--", ":")
MARKERS = {"model": "s", "oracle": "D", "schedule": "o", "ablation": "^"}


def sign(kind: str, theme: Theme) -> dict[str, Any]:
    """Returns the marker style of a kind of model or arm."""
    colours = {"model": theme.text, "oracle": theme.text, "schedule": theme.models[FUSED], "ablation": theme.others[0]}
    return {"marker": MARKERS[kind], "color": colours[kind], "zorder": 3}


def ablation_plot(results: Results, theme: Theme = LIGHT) -> Figure:
    """Plots a panel per metric and a row per model or arm, with the reference arms as vertical lines."""
    with styled(theme):
        figure = new_figure(1.5 + 2 * (0.55 + 0.21 * len(results.measured)))
        panels: Any = figure.subplots(2, 1)
        for axes, metric in zip(panels, METRICS, strict=True):
            _panel(axes, results, metric, theme)
        most = max(len(each.updates) for each in results.measured)
        seeds = f"\n{most} seeds (small: each; large: their mean)" if most > 1 else "\none seed" if most else ""
        figure.suptitle(f"Arms on n = {results.num_rows:,} held-out rows{seeds}", fontsize=10)
        if results.references:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, results: Results, metric: Metric, theme: Theme) -> None:
    for place, each in enumerate(results.measured):
        values = results.per_seed(each, metric)
        look = sign(each.kind, theme)
        axes.scatter([values.mean()], [place], s=34, **look)
        if len(values) > 1:
            axes.plot([values.min(), values.max()], [place, place], color=look["color"], linewidth=1.4, zorder=2)
            axes.scatter(values, [place] * len(values), s=7, **look)
    for line, name in zip(LINES, results.references, strict=False):
        mean = results.per_seed(_named(results, name), metric).mean()
        axes.axvline(mean, color=theme.text, linestyle=line, linewidth=1, label=name)
    axes.set_yticks(range(len(results.measured)), [each.name for each in results.measured], fontsize=8)
    axes.set_ylim(len(results.measured) - 0.5, -0.5)
    axes.set_xlabel(f"{metric.title} ({metric.hint})")
    axes.grid(axis="x")


def _named(results: Results, name: str) -> Measured:
    return next(each for each in results.measured if each.name == name)
