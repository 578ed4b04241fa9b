"""Plots of the choice of teachers: pairwise win rates, agreement of the judges, and length bias. See plot.py for the form."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts
from profuser.report.plots.plot import MOST_CATEGORIES, SOURCE_MARKERS, cut
from profuser.report.plots.style import LIGHT, MODE_MARKERS, Theme, new_figure, styled
from profuser.report.tables.selection import signed


def win_rates_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots how often the first source of each pair is better, by mode; a line marks 50 %."""
    duels = [duel for duel in (facts.selection.duels if facts.selection else ()) if _known(duel)][:MOST_CATEGORIES]
    if not duels:
        return None
    with styled(theme):
        figure = new_figure(1.5 + 0.5 * len(duels))
        axes = figure.subplots()
        shares = {mode: [100 * getattr(duel, mode).share for duel in duels] for mode in MODES}
        for mode in MODES:
            num_rows = max(getattr(duel, mode).num_rows for duel in duels)
            look: dict[str, Any] = {"color": theme.modes[mode], "marker": MODE_MARKERS[mode], "s": 44, "zorder": 4}
            axes.scatter(shares[mode], range(len(duels)), label=f"{mode} mode, n = {num_rows:,}", **look)
        for place, ends in enumerate(zip(*shares.values(), strict=True)):
            axes.plot(ends, [place, place], color=theme.text, linewidth=1.2, zorder=3)
        axes.axvline(50, color=theme.text, linestyle="--", linewidth=1)
        names = [[cut(facts.source_label(name)) for name in (duel.first, duel.second)] for duel in duels]
        axes.set_yticks(range(len(duels)), [f"{first}\nbeats {second}" for first, second in names])
        axes.set_ylim(len(duels) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the rows that neither refused, %, ties count half")
        axes.grid()
        figure.suptitle("Who beats whom")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _known(duel: Any) -> bool:
    return any(getattr(duel, mode).num_rows for mode in MODES)


def agreement_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots Cohen's kappa of every pair of rewards."""
    found = facts.selection.agreements if facts.selection else ()
    pairs = [pair for pair in found if np.isfinite(pair.kappa)][:MOST_CATEGORIES]
    if not pairs:
        return None
    with styled(theme):
        figure = new_figure(1.15 + 0.5 * len(pairs))
        axes = figure.subplots()
        places, values = range(len(pairs)), [pair.kappa for pair in pairs]
        bars = axes.barh(places, values, height=0.55, color=theme.modes["inference"])
        axes.bar_label(bars, [signed(value) for value in values], padding=3, fontsize=9)
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_yticks(places, [f"{cut(pair.first)}\nand {cut(pair.second)}" for pair in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        # Room for the numbers beside the bars, also on the left if one is below chance.
        axes.set_xlim(min(values) - 0.4 if min(values) < 0 else 0, 1.12)
        axes.set_xlabel("Cohen's kappa (0 is chance)")
        axes.grid(axis="x")
        figure.suptitle(f"Agreement of the judges, n <= {max(pair.num_rows for pair in pairs):,} rows")
    return figure


def length_plot(facts: RunFacts, theme: Theme = LIGHT) -> Figure | None:
    """Plots the mean reward of answers over their length; a rising line is a bias towards long answers."""
    if facts.selection is None or len(facts.selection.lengths) < 2:
        return None
    parts, judges = facts.selection.lengths, facts.selection.judges
    with styled(theme):
        figure = new_figure(3.5)
        axes = figure.subplots()
        for index, judge in enumerate(judges):
            axes.plot(
                [part.mean_bytes for part in parts],
                [part.rewards[judge.name] for part in parts],
                color=theme.others[index % len(theme.others)],
                marker=SOURCE_MARKERS[index % len(SOURCE_MARKERS)],
                markersize=5,
                label=f"{cut(judge.name)} {signed(judge.length_correlation)}",
            )
        axes.axhline(0, color=theme.text, linestyle="--", linewidth=1)
        if parts[-1].mean_bytes > 10 * parts[0].mean_bytes:
            # A few very long answers would squeeze all others against the axis.
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("answer, bytes (deciles of the answers by length)")
        axes.set_ylabel("mean reward, standard deviations")
        axes.grid()
        figure.suptitle(f"Length and reward, n = {sum(part.num_answers for part in parts):,} answers")
        figure.legend(loc="outside lower center", ncols=3, title="Spearman's rank correlation")
    return figure
