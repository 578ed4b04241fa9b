"""Draws the pictures of a report, each with its alternative text and the numbers behind it."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts
from profuser.report.headline import headline
from profuser.report.measures import METRICS
from profuser.report.plots.loss import loss_plot
from profuser.report.plots.plot import coverage_plot, scores_plot, who_wins_plot
from profuser.report.plots.results import gap_rows, gaps_alt, gaps_plot
from profuser.report.plots.selection import agreement_plot, length_plot, win_rates_plot
from profuser.report.plots.style import DARK, LIGHT, Theme
from profuser.report.tables.loss import losses_alt
from profuser.report.tables.selection import agreement_rows, length_rows, share, signed, win_rate_rows
from profuser.report.tables.table import percent, score_table
from profuser.signals.rules import RULES

PNG_DPI = 200


@dataclass(frozen=True)
class Picture:
    """One picture of a run, for both themes."""

    name: str
    """File name without suffix."""
    alt: str
    """Alternative text for screen readers."""
    rows: Sequence[Mapping[str, Any]]
    """Plotted numbers, for a CSV."""
    light: Figure
    dark: Figure

    def png(self) -> bytes:
        """Returns the light picture as PNG."""
        return _image(self.light, "png")

    def data_uri(self, theme: str) -> str:
        """Returns the `light` or `dark` picture as an SVG data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(_image(getattr(self, theme), "svg")).decode()


def pictures(facts: RunFacts) -> dict[str, Picture]:
    """Returns all pictures by name, without those that have no data."""
    plots: dict[str, tuple[Callable[[RunFacts, Theme], Figure | None], str, Sequence[Mapping[str, Any]]]] = {
        "differences": (gaps_plot, gaps_alt(facts), gap_rows(facts)),
        "scores": (scores_plot, _scores_alt(facts), [asdict(row) for row in score_table(facts)]),
        "who_wins": (who_wins_plot, _wins_alt(facts), [asdict(row) for row in facts.wins()]),
        "win_rates": (win_rates_plot, _win_rates_alt(facts), win_rate_rows(facts)),
        "agreement": (agreement_plot, _agreement_alt(facts), agreement_rows(facts)),
        "length": (length_plot, _length_alt(facts), length_rows(facts)),
        "coverage": (coverage_plot, _coverage_alt(facts), _coverage_rows(facts)),
        "losses": (loss_plot, losses_alt(facts), list(facts.history)),
    }
    out = {}
    for name, (plot, alt, rows) in plots.items():
        light, dark = plot(facts, LIGHT), plot(facts, DARK)
        if light and dark:
            out[name] = Picture(name, alt, rows, light, dark)
    return out


def _image(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    # No date and a fixed salt: the same run gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "profuser"}):
        figure.savefig(out, format=kind, dpi=PNG_DPI, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _coverage_rows(facts: RunFacts) -> list[dict[str, Any]]:
    by_source = {pair.source: pair.rules for pair in facts.pair_coverage()}
    return [
        {"rule": rule, "tokens": tokens, "meaning": RULES[rule].meaning}
        | {name: rules[rule] for name, rules in by_source.items()}
        for rule, tokens in facts.coverage().items()
    ]


def _scores_alt(facts: RunFacts) -> str:
    models = [
        f"{facts.label(model)} {', '.join(f'{m.text(m.of(facts.score(model)))}{m.unit}' for m in METRICS)}"
        for model in facts.models
    ]
    words = " ".join(finding.text for finding in headline(facts).findings[: len(METRICS)])
    return (
        f"Dots per category and model, with a line from the target to the fused model. {words} "
        f"On all rows, {' and '.join(metric.name for metric in METRICS)}: {'; '.join(models)}."
    )


def _wins_alt(facts: RunFacts) -> str:
    parts = []
    for mode in MODES:
        total = sum(getattr(row, mode) for row in facts.wins())
        shares = ", ".join(f"{row.source} {percent(getattr(row, mode), total)}" for row in facts.wins())
        parts.append(f"{mode} mode: {shares}")
    return f"Bars: share of examples that each source teaches. {'; '.join(parts)}."


def _win_rates_alt(facts: RunFacts) -> str:
    parts = [
        f"{duel.first} beats {duel.second} on {share(duel.training.share)} of the rows in training mode "
        f"and {share(duel.inference.share)} in inference mode"
        for duel in (facts.selection.duels if facts.selection else ())
    ]
    return f"Dots: share of rows on which one source beats another. {'; '.join(parts)}."


def _agreement_alt(facts: RunFacts) -> str:
    pairs = facts.selection.agreements if facts.selection else ()
    parts = [f"{pair.first} and {pair.second} {signed(pair.kappa)}" for pair in pairs]
    return f"Bars: Cohen's kappa of the choices of two rewards. {', '.join(parts)}."


def _length_alt(facts: RunFacts) -> str:
    judges, lengths = (facts.selection.judges, facts.selection.lengths) if facts.selection else ((), ())
    parts = []
    for judge in judges:
        ends = [
            f"{part.rewards[judge.name]:+.2f} at {part.mean_bytes:,.0f} bytes" for part in (*lengths[:1], *lengths[-1:])
        ]
        parts.append(f"{judge.name} from {' to '.join(ends)}, rank correlation {signed(judge.length_correlation)}")
    return f"Lines: mean reward in standard deviations over the length of answers. {'; '.join(parts)}."


def _coverage_alt(facts: RunFacts) -> str:
    total = sum(facts.coverage().values())
    shares = ", ".join(f"{rule} {percent(tokens, total)}" for rule, tokens in facts.coverage().items())
    return f"Bars: share of response tokens per alignment rule. {shares}."
