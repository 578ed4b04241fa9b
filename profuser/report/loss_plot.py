"""Losses over the updates, with the schedule that weighs them beneath."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.report.facts import RunFacts
from profuser.report.style import LIGHT, Theme, new_figure, styled
from profuser.schedule import stage_boundaries, weights_at
from profuser.schemas import MODES

PANELS = {"ce": "CE, nats/token", "kl": "KL, nats/token"}
SMOOTHED_SHARE = 0.03
"""The bold line is a moving mean over this share of the updates."""
MOST_POINTS = 2000
"""Updates drawn at most; the CSV holds every one."""


def loss_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Cross-entropy and KL per mode, the mode weights, and dashed lines where one piece of the schedule gives way to the next."""
    if not facts.history:
        return None
    num_steps = int(facts.history[-1].get("num_steps", len(facts.history)))
    with styled(theme):
        figure = new_figure(5.4)
        panels: Any = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
        window = max(1, round(SMOOTHED_SHARE * len(facts.history)))
        for axes, (part, label) in zip(panels, PANELS.items(), strict=False):
            _losses(axes, facts, part, window, theme)
            axes.set_ylabel(label)
        _weights(panels[2], facts, num_steps, theme)
        for axes in panels:
            axes.grid()
            for boundary in stage_boundaries(facts.schedule):
                axes.axvline(boundary * num_steps, color=theme.text, linestyle="--", linewidth=1)
        panels[2].set_xlabel(f"update (bold: moving mean of {window})" if window > 1 else "update")
        figure.suptitle(f"Losses per response token, n = {len(facts.history):,} updates")
        figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _losses(axes: Axes, facts: RunFacts, part: str, window: int, theme: Theme) -> None:
    thin = max(1, len(facts.history) // MOST_POINTS)
    steps = np.array([update.get("step", index) for index, update in enumerate(facts.history)])
    for mode in MODES:
        values = np.array([update.get(f"{part}_{mode}_nats", np.nan) for update in facts.history], dtype=float)
        if window > 1:
            axes.plot(steps[::thin], values[::thin], color=theme.modes[mode], alpha=0.3, linewidth=0.8)
        mean = moving_mean(values, window)
        axes.plot(steps[::thin], mean[::thin], color=theme.modes[mode], linewidth=1.8)
    axes.set_ylim(bottom=0)


def _weights(axes: Axes, facts: RunFacts, num_steps: int, theme: Theme) -> None:
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, MOST_POINTS)).round())
    for mode in MODES:
        if facts.schedule:
            weights = [getattr(weights_at(facts.schedule, step / num_steps), mode) for step in steps]
            axes.step(steps, weights, where="post", color=theme.modes[mode], linewidth=1.8, label=f"{mode} mode")
        else:
            axes.plot([], [], color=theme.modes[mode], label=f"{mode} mode")
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=-0.05)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, over those that are finite; NaN where the value itself is not."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    mean = (sums[ends] - sums[starts]) / np.maximum(1, counts[ends] - counts[starts])
    return np.where(known, mean, np.nan)
