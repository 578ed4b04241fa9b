"""Plots the losses over the updates, with the pairs' losses, held-out bits per byte and the modes' weights below."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.artifacts.schemas import MODES, ON_POLICY
from profuser.report.facts import RunFacts
from profuser.report.plots.style import LIGHT, MODE_LINES, MODE_MARKERS, Theme, new_figure, styled
from profuser.report.tables.loss import has_pairs, stage_boundaries

PANELS = {"ce": "CE, nats/token", "kl": "KL, nats/token"}
PREFERENCE = "preference"
SMOOTHED_SHARE = 0.03
"""Share of the updates in the moving mean, the bold line."""
MOST_NAMED = 3
"""Maximum number of stage boundaries that are labelled."""
MOST_POINTS = 2000
"""Maximum number of updates drawn; the CSV has all of them."""


def loss_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots cross-entropy, KL, held-out bits per byte and weight of each mode, with dashed lines between the schedule's stages; of
    pairs, the loss."""
    if not facts.history:
        return None
    heldout = any(_heldout(update, mode) is not None for update in facts.history for mode in MODES)
    pairs = has_pairs(facts.history)
    heights = [3, 3, *([2] if pairs else []), *([2] if heldout else []), 1.3]
    with styled(theme):
        figure = new_figure(0.74 * sum(heights))
        panels: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        window = max(1, round(SMOOTHED_SHARE * len(facts.history)))
        for axes, (part, label) in zip(panels, PANELS.items(), strict=False):
            for mode in _modes(facts):
                _curve(axes, facts, f"{part}_{mode}_nats", mode, window, theme)
            axes.set_ylabel(label)
        if pairs:
            _curve(panels[2], facts, "preference_nats", PREFERENCE, window, theme)
            panels[2].set_ylabel("pairs, nats/pair")
        if heldout:
            _heldout_bits(panels[-2], facts, theme)
        _weights(panels[-1], facts, theme)
        boundaries = stage_boundaries(facts.history)
        _name_stages(panels[0], boundaries)
        for axes in panels:
            axes.grid()
            for boundary in boundaries:
                axes.axvline(boundary, color=theme.text, linestyle="--", linewidth=1)
        panels[-1].set_xlabel(f"update (bold: moving mean of {window})" if window > 1 else "update")
        figure.suptitle(f"Losses per response token, n = {len(facts.history):,} updates")
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _modes(facts: RunFacts) -> tuple[str, ...]:
    """Returns the modes whose examples have a teacher."""
    return (*MODES, *([ON_POLICY] if any(f"kl_{ON_POLICY}_nats" in update for update in facts.history) else []))


def _name_stages(axes: Axes, boundaries: list[float]) -> None:
    """Labels each boundary with the stage that begins there, unless there are too many."""
    if len(boundaries) <= MOST_NAMED:
        for number, boundary in enumerate(boundaries, 2):
            place = {"xy": (boundary, 1), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(f"stage {number}", xytext=(4, -2), va="top", fontsize=8.5, **place)


def _curve(axes: Axes, facts: RunFacts, name: str, mode: str, window: int, theme: Theme) -> None:
    """Draws one metric in the look of a mode: each update thin, their moving mean bold."""
    thin = max(1, len(facts.history) // MOST_POINTS)
    steps = np.array([update.get("step", index) for index, update in enumerate(facts.history)])
    values = np.array([update.get(name, np.nan) for update in facts.history], dtype=float)
    if window > 1:
        axes.plot(steps[::thin], values[::thin], color=theme.modes[mode], alpha=0.3, linewidth=0.8)
    mean = moving_mean(values, window)
    axes.plot(steps[::thin], mean[::thin], color=theme.modes[mode], linestyle=MODE_LINES[mode], linewidth=1.8)
    axes.set_ylim(bottom=0)


def _heldout(update: Mapping[str, float], mode: str) -> float | None:
    return update.get(f"heldout_bits_per_byte_{mode}")


def _heldout_bits(axes: Axes, facts: RunFacts, theme: Theme) -> None:
    for mode in MODES:
        known = [(update["step"], value) for update in facts.history if (value := _heldout(update, mode)) is not None]
        look: dict[str, Any] = {"color": theme.modes[mode], "linestyle": MODE_LINES[mode], "marker": MODE_MARKERS[mode]}
        axes.plot(*zip(*known, strict=True), **look, markersize=4, linewidth=1.2)
    axes.set_ylabel("held out, bits/byte")
    axes.set_ylim(bottom=0)


def _weights(axes: Axes, facts: RunFacts, theme: Theme) -> None:
    thin = facts.history[:: max(1, len(facts.history) // MOST_POINTS)]
    steps = [update.get("step", index) for index, update in enumerate(thin)]
    for mode in (*_modes(facts), *([PREFERENCE] if has_pairs(facts.history) else [])):
        weights = [update.get(f"weight_{mode}", np.nan) for update in thin]
        look: dict[str, Any] = {"color": theme.modes[mode], "linestyle": MODE_LINES[mode], "label": f"{mode} mode"}
        axes.step(steps, weights, where="post", linewidth=1.8, **look)
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=-0.05)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of the last `window` values at each position, over the finite ones; NaN where the value itself is not."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    mean = (sums[ends] - sums[starts]) / np.maximum(1, counts[ends] - counts[starts])
    return np.where(known, mean, np.nan)
