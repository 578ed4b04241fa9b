"""Reads the `table.json` of an ablation: rows for tables, and two plots in addition to its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.ablation.plot import sign
from profuser.ablation.results import REFERENCES
from profuser.report.measures import METRICS, Metric
from profuser.report.plots.style import LIGHT, Theme, new_figure, styled
from profuser.run.stages import FUSED

TABLE = "table.json"
FILLED = ("better", "worse")
"""Verdicts drawn as filled dots; the others are hollow."""


@dataclass(frozen=True)
class AblationTable:
    """Result written by `profuser lab ablate`."""

    content: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "AblationTable":
        """Reads `table.json` of a result folder."""
        return cls(json.loads((Path(folder) / TABLE).read_text(encoding="utf-8")))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of a model or an arm each, as written by `table.as_json`."""
        return self.content["rows"]

    @property
    def references(self) -> list[str]:
        """Reference arms, which the others are compared with."""
        names = {row["name"] for row in self.rows}
        return [name for name in REFERENCES if name in names]

    def arms(self) -> list[dict[str, Any]]:
        """Returns a row per trained arm."""
        return [
            {
                "arm": row["name"],
                "seeds": row["seeds"],
                "updates": row["updates"],
                "tokens": round(row["tokens"]),
                "what it is": row["about"],
            }
            for row in self.rows
            if row["seeds"]
        ]

    def scores(self) -> list[dict[str, Any]]:
        """Returns a row per model or arm: the mean of its seeds in both metrics, with minimum and maximum."""
        return [{"arm": row["name"]} | {m.title: _with_range(row, m) for m in METRICS} for row in self.rows]

    def differences(self, reference: str, metric: Metric) -> list[dict[str, Any]]:
        """Returns a row per other model or arm: its value minus the reference's, with the 95 % interval, p and verdict.

        A row whose updates or tokens differ from the reference's has no numbers.
        """
        keys = ("difference", "low", "high", "p_holm", "verdict")
        prefix = f"{metric.key}_less_{reference}"
        return [
            {"arm": row["name"]} | {name: row.get(f"{prefix}_{name}") for name in keys}
            for row in self.rows
            if row["name"] != reference
        ]


def _with_range(row: Mapping[str, Any], metric: Metric) -> str:
    mean, low, high = (metric.text(row[f"{metric.key}{end}"]) for end in ("", "_min", "_max"))
    return f"{mean} ({low} to {high})" if (row["seeds"] or 0) > 1 else mean


def differences_plot(table: AblationTable, reference: str, theme: Theme = LIGHT) -> Figure:
    """Plots every model and arm minus one arm in both metrics, with 95 % intervals; hollow if neither better nor worse."""
    with styled(theme):
        figure = new_figure(1.4 + 2 * (0.5 + 0.2 * (len(table.rows) - 1)))
        figure.set_figwidth(6.4)
        panels: Any = figure.subplots(2, 1)
        for axes, metric in zip(panels, METRICS, strict=True):
            _differences(axes, table, reference, metric, theme)
        figure.suptitle(f"Minus {reference}, n = {table.content['num_rows']:,} held-out rows")
        figure.supxlabel("filled dots: better or worse after Holm's correction; lines: 95 % intervals", fontsize=8.5)
    return figure


def _differences(axes: Axes, table: AblationTable, reference: str, metric: Metric, theme: Theme) -> None:
    rows = table.differences(reference, metric)
    for place, row in enumerate(rows):
        if row["difference"] is None:
            axes.annotate(
                "not step-matched", (0.5, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5
            )
            continue
        fill = theme.models[FUSED] if row["verdict"] in FILLED else theme.background
        axes.plot([row["low"], row["high"]], [place, place], color=theme.models[FUSED], linewidth=1.4, zorder=2)
        axes.scatter([row["difference"]], [place], s=28, facecolors=fill, edgecolors=theme.models[FUSED], zorder=3)
    axes.axvline(0, color=theme.text, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"difference in {metric.title} ({metric.hint})")
    axes.grid(axis="x")


def both_metrics_plot(table: AblationTable, theme: Theme = LIGHT) -> Figure:
    """Plots both metrics against each other, a large marker per model or arm and a small one per seed; better is up and left."""
    across, up = METRICS
    with styled(theme):
        figure = new_figure(max(4.0, 1.2 + 0.24 * len(table.rows)))
        figure.set_figwidth(7.0)
        axes = figure.subplots()
        for row in table.rows:
            look = sign(row["kind"], theme)
            axes.scatter([row[across.key]], [row[up.key]], s=38, **look)
            if (row["seeds"] or 0) > 1:
                axes.scatter(row["per_seed"][across.key], row["per_seed"][up.key], s=8, alpha=0.6, **look)
        _names(axes, table, theme)
        axes.set_xlabel(f"{across.title} ({across.hint})")
        axes.set_ylabel(f"{up.title} ({up.hint})")
        axes.grid()
        figure.suptitle(f"Both metrics, n = {table.content['num_rows']:,} held-out rows")
    return figure


def _names(axes: Axes, table: AblationTable, theme: Theme) -> None:
    """Writes the names in a column beside the plot, each with a line to its marker: the dots may be too close for labels."""
    across, up = (metric.key for metric in METRICS)
    ordered = sorted(table.rows, key=lambda row: (-row[up], -row[across]))
    for place, row in enumerate(ordered):
        axes.annotate(
            row["name"],
            (row[across], row[up]),
            xytext=(1.06, 1 - (place + 0.5) / len(ordered)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": theme.text, "alpha": 0.35, "linewidth": 0.7, "relpos": (0, 0.5)},
        )
