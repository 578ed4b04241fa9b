"""Plots of alignment: the transport of one position's mass, and the share of each rule by pair of tokenizers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profuser.alignment.transport import Transported
from profuser.report.plots.style import LIGHT, Theme, drawable, label_background, new_figure, rule_look, styled
from profuser.report.tables.alignment import SPACE_SIGN, Aligned, MassShare, token_label
from profuser.report.tables.table import percent
from profuser.signals.rules import RULES


def mass_plot(
    aligned: Aligned, carried: Transported, shares: Sequence[MassShare], position: int, theme: Theme = LIGHT
) -> Figure:
    """Plots one position: the source's candidates on the left, the target's tokens on the right, and a line for each mass.

    Under CHAIN a dashed line leads from the realised candidate to the tail, which gets the mass that the product leaves.

    Args:
        aligned: both tokenizations.
        carried: transported distributions.
        shares: `mass_shares` of the position.
        position: index of the target token.
        theme: colours.
    """
    arrived = [
        (int(index), float(np.exp(logprob)))
        for index, logprob in zip(carried.topk.ids[position], carried.topk.logprobs[position], strict=True)
        if np.isfinite(logprob)
    ]
    left = [(share.candidate, share.mass) for share in shares]
    left.append(("tail", max(0.0, 1 - sum(share.mass for share in shares))))
    right = [(token_label(aligned.target.tokens, index), mass) for index, mass in arrived]
    right.append(("tail", float(carried.topk.tail_mass()[position])))
    rows = {index: row for row, (index, _) in enumerate(arrived)}
    with styled(theme):
        figure = new_figure(1.1 + 0.27 * max(len(left), len(right)))
        figure.set_figwidth(7.0)
        panels: Any = figure.subplots(1, 3, width_ratios=(3, 2, 3))
        fits = [share.fits for share in shares]
        colours = [theme.modes["training"] if each else theme.background for each in fits]
        _column(panels[0], left, [*colours, theme.grid], theme, mirrored=True)
        _column(panels[2], right, [theme.modes["inference"]] * len(arrived) + [theme.grid], theme)
        panels[0].set_title(f"{aligned.source.name} predicts", fontsize=9.5)
        panels[2].set_title(f"{aligned.target.name} gets", fontsize=9.5)
        tail = len(right) - 1
        for row, share in enumerate(shares):
            if share.fits:
                _link(panels[1], row, rows.get(share.target, tail), share.mass, theme)
            if share.continued:
                _link(panels[1], row, tail, 0.0, theme, linestyle="--")
        if aligned.consumed(position):
            panels[0].set_xlabel("no line: begins with other bytes, left out", fontsize=8)
        else:
            _link(panels[1], len(left) - 1, tail, left[-1][1], theme)
        for axes in panels:
            axes.set_ylim(max(len(left), len(right)) - 0.4, -0.6)
        panels[1].set_xlim(0, 1)
        panels[1].axis("off")
        figure.suptitle(_mass_title(aligned, position))
    return figure


def _mass_title(aligned: Aligned, position: int) -> str:
    rule, label = aligned.rule(position).name.lower(), drawable(aligned.target.labels[position])
    consumed = aligned.consumed(position).decode(errors="replace").replace(" ", SPACE_SIGN)
    after = f', after "{drawable(consumed)}" of the source token' if consumed else ""
    return f'Position {position}, "{label}": {rule}{after}'


def _column(
    axes: Axes, rows: Sequence[tuple[str, float]], colours: Sequence[str], theme: Theme, mirrored: bool = False
) -> None:
    """Draws bars outwards from the middle of the picture, each with its token and mass."""
    places, masses = range(len(rows)), [mass for _, mass in rows]
    axes.barh(places, masses, height=0.62, color=colours, edgecolor=theme.text, linewidth=0.4)
    for place, (label, mass) in enumerate(rows):
        side: dict[str, Any] = {"ha": "right" if mirrored else "left", "va": "center", "fontsize": 8}
        axes.text(mass + 0.02, place, f"{drawable(label)}   {percent(mass, 1)}", **side)
    axes.set_xlim((1.7, 0) if mirrored else (0, 1.7))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _link(axes: Axes, left: int, right: int, mass: float, theme: Theme, linestyle: str = "-") -> None:
    steps = np.linspace(0, 1, 30)
    curve = left + (right - left) * (3 * steps**2 - 2 * steps**3)
    look: dict[str, Any] = {"color": theme.text, "alpha": 0.45, "linestyle": linestyle, "solid_capstyle": "butt"}
    axes.plot(steps, curve, linewidth=0.6 + 3 * mass, **look)


def pair_coverage_plot(pairs: Mapping[str, Mapping[str, int]], theme: Theme = LIGHT) -> Figure:
    """Plots the share of the target's tokens by rule, a bar per pair."""
    with styled(theme):
        figure = new_figure(1.4 + 0.4 * len(pairs))
        figure.set_figwidth(7.0)
        axes = figure.subplots()
        left = np.zeros(len(pairs))
        for rule, record in RULES.items():
            shares = np.array([100 * rules.get(rule, 0) / max(1, sum(rules.values())) for rules in pairs.values()])
            if shares.any():
                look = rule_look(theme, rule)
                bars = axes.barh(
                    range(len(pairs)), shares, left=left, height=0.62, label=f"{rule}: {record.meaning}", **look
                )
                labels = [f"{share:.0f}" if share >= 4 else "" for share in shares]
                axes.bar_label(bars, labels, label_type="center", fontsize=8, bbox=label_background(theme, look))
            left += shares
        axes.set_yticks(range(len(pairs)), [f"{name} ({sum(rules.values()):,})" for name, rules in pairs.items()])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of target tokens, % (in brackets: number of tokens)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
