"""Shows the numbers of a report as rows, and as tables for a terminal of 80 columns or more."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts
from profuser.report.measures import METRICS, Change, Metric

WIDE = 100
"""Columns of a terminal on which an interval has its own column."""
STAGE_WIDTH, NAME_WIDTH = 32, 16
"""Longest line of a stage's name and of any other name in a table."""


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one model on one category."""

    model: str
    category: str
    num_rows: int
    bits_per_byte: float
    """NaN if unknown."""
    exact_match: float
    """Share of rows, 0 to 1; NaN if unknown."""


def score_table(facts: RunFacts) -> list[ScoreRow]:
    """Returns a row per model on all rows and on each category, in the order of the facts."""
    return [
        ScoreRow(model, category, **asdict(facts.score(model, category)))
        for category in facts.categories
        for model in facts.models
    ]


def render_scores(facts: RunFacts, width: int = WIDE) -> Table:
    """Returns both metrics per category and model, for a terminal of a width; the better of target and fused model is bold."""
    is_wide = width >= WIDE
    table = new_table(f"held-out scores, {facts.num_rows():,} rows", "")
    table.caption = "; ".join(f"{metric.title}: {metric.hint}" for metric in METRICS)
    table.add_column("rows", justify="right")
    for model in facts.models:
        table.add_column(model_header(facts.label(model)), justify="right", no_wrap=True)
    change = "change" if is_wide or not facts.comparisons else "change,\n95 %\ninterval"
    table.add_column(change, justify="right", no_wrap=True)
    if facts.comparisons:
        if is_wide:
            table.add_column("95 % interval", justify="right")
        table.add_column("verdict")
        table.pad_edge = False  # with four models every column is needed
    for metric in METRICS:
        table.add_row(Text(metric.title, style="italic"))
        for category in facts.categories:
            table.add_row(*_score_cells(facts, metric, category, is_wide))
        table.add_section()
    return table


def _score_cells(facts: RunFacts, metric: Metric, category: str, is_wide: bool) -> list[Text]:
    change = Change.of(facts, metric, category)
    cells = [name_cell(category, indent="  "), Text(f"{facts.num_rows(category):,}")]
    for model in facts.models:
        value = metric.text(metric.of(facts.score(model, category)))
        cells.append(Text(value, style="bold" if model == change.better_model else ""))
    if not facts.comparisons:
        return [*cells, Text(change.text)]
    if is_wide:
        return [*cells, Text(change.text), Text(change.interval), Text(change.verdict)]
    low, to, high = change.interval.partition(" to ")
    interval = f"\n({low},\n{high})" if to else ""
    return [*cells, Text(change.text + interval), Text(change.verdict)]


def who_wins_table(facts: RunFacts) -> Table:
    """Returns the examples per source in both modes, as numbers and shares of the mode's examples."""
    table = new_table(f"teachers of {facts.selection_counts.get('rows', 0):,.0f} corpus rows", "source")
    for mode in MODES:
        table.add_column(f"{mode} mode", justify="right")
        table.add_column("share", justify="right")
    wins = facts.wins()
    totals = [sum(getattr(row, mode) for row in wins) for mode in MODES]
    for row in wins:
        cells = []
        for number, total in zip((row.training, row.inference), totals, strict=True):
            cells += [f"{number:,}", percent(number, total)]
        table.add_row(name_cell(facts.source_label(row.source)), *cells)
    return table


def stage_table(facts: RunFacts) -> Table:
    """Returns every stage with its state, rows, tokens and seconds."""
    table = new_table(f"stages, {facts.seconds:,.1f} seconds in all", "stage")
    table.add_column("state")
    for name in ("rows", "tokens", "seconds"):
        table.add_column(name, justify="right")
    for stage in facts.stages:
        counts = [f"{stage.counts[name]:,.0f}" if name in stage.counts else "" for name in ("rows", "tokens")]
        table.add_row(
            name_cell(stage.name, STAGE_WIDTH),
            Text(stage.state),
            *counts,
            f"{stage.seconds:,.1f}" if stage.seconds else "",
        )
    return table


def new_table(title: str, first_column: str) -> Table:
    """Returns an empty table in the common style."""
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column(first_column, no_wrap=True)
    return table


def name_cell(name: str, width: int = NAME_WIDTH, indent: str = "") -> Text:
    """Returns a name for a table, broken after a space, slash, hyphen or underscore where it is longer than the width.

    A column of names has `no_wrap`: a narrow terminal neither cuts nor breaks it elsewhere, and other columns are narrower.
    """
    lines = [""]
    for piece in re.findall(r"[^ /_-]*[ /_-]|[^ /_-]+", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(indent + line.rstrip() for line in lines))


def model_header(label: str) -> Text:
    """Returns a model's label as a column's header, its parts below each other."""
    return Text("\n").join(name_cell(part, 10) for part in label.split(" "))


def percent(part: float, whole: float) -> str:
    """Formats a share as `12.3 %`; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows as CSV in full precision; None, NaN and missing columns are empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row.get(name) for name in columns]
        writer.writerow(["" if value is None or value != value else value for value in values])
    return out.getvalue()
