"""Further tables of an ablation: both metrics by category of the corpus, and win rates of the answers by verifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from profuser.ablation.results import TARGET_TITLE, Measured, Results
from profuser.evaluation.statistics import Estimate
from profuser.report.comparisons import in_percent
from profuser.report.measures import METRICS, SCORE, Metric
from profuser.report.tables.table import name_cell, new_table

NAME_WIDTH, HEADING_WIDTH, WIDTH = 18, 10, 80
"""Characters of an arm's name and of a heading before they are broken at a hyphen or the like, and of a whole table."""


@dataclass(frozen=True)
class Column:
    """A category or a verifier."""

    name: str
    num_rows: int
    """Held-out rows of the category, or that the verifier judges."""
    cells: Sequence[str]
    """A cell per row of the table."""


@dataclass(frozen=True)
class Breakdown:
    """A table with the same models and arms as the main ones."""

    title: str
    measured: Sequence[Measured]
    columns: Sequence[Column]


def breakdowns(results: Results) -> list[Breakdown]:
    """Returns a table per metric if there are several categories, and one of win rates if the recipe has verifiers."""
    out = [Breakdown(*_by_category(results, metric)) for metric in METRICS if results.categories]
    verifiers = list(dict.fromkeys(verifier for verifier, _ in results.answers.rates))
    compared = [each for each in results.measured if any((v, each.name) in results.answers.rates for v in verifiers)]
    columns = [_win_rates(results, verifier, compared) for verifier in verifiers]
    title = f"win rate of the answers against {TARGET_TITLE}, %, by verifier"
    return [*out, Breakdown(title, compared, columns)] if columns else out


def _by_category(results: Results, metric: Metric) -> tuple[str, Sequence[Measured], list[Column]]:
    columns = []
    for name, rows in results.categories.items():
        cells = [metric.text(results.per_seed(each, metric, rows).mean()) for each in results.measured]
        columns.append(Column(name, int(rows.sum()), cells))
    return f"{metric.title}, by category ({metric.hint})", results.measured, columns


def _win_rates(results: Results, verifier: str, compared: Sequence[Measured]) -> Column:
    rates = [results.answers.rates.get((verifier, each.name)) for each in compared]
    return Column(verifier, max(rate.num_items for rate in rates if rate), [_rate_text(rate) for rate in rates])


def _rate_text(rate: Estimate | None) -> str:
    if rate is None:
        return "-"
    shown = in_percent(rate)
    return f"{SCORE.text(shown.value)} [{SCORE.text(shown.low)}, {SCORE.text(shown.high)}]"


def notes(results: Results) -> list[str]:
    """Returns explanations of these tables."""
    out = []
    if results.categories:
        out.append("By category: the mean of the seeds; n: held-out rows of the category.")
    if results.answers.rates:
        out.append(
            "Win rate: share of the n rows that the verifier judges on which the answer scores higher than that of "
            f"{TARGET_TITLE}; ties count half, and a blank answer loses. Its intervals are not corrected for the number of arms."
        )
    return [*out, *(f"No win rate by {name}: {reason}." for name, reason in results.answers.left_out.items())]


def render(results: Results, width: int = WIDTH) -> list[Table]:
    """Returns the tables for a terminal of this width; one that is wider is continued in further tables."""
    return [_table(each, part) for each in breakdowns(results) for part in _parts(each, width)]


def _parts(whole: Breakdown, width: int) -> list[list[Column]]:
    """Splits the columns so that each part fits in the width with the arms' names."""
    first = _widest(name_cell(each.name, NAME_WIDTH) for each in whole.measured) + 4
    parts: list[list[Column]] = [[]]
    left = width - first
    for column in whole.columns:
        own = max(_widest([_heading(column)]), *map(len, column.cells)) + 3
        if own > left and parts[-1]:
            parts.append([])
            left = width - first
        parts[-1].append(column)
        left -= own
    return parts


def _widest(texts: Any) -> int:
    return max(len(line) for text in texts for line in text.plain.split("\n"))


def _heading(column: Column) -> Text:
    return Text("\n").join([name_cell(column.name, HEADING_WIDTH), Text(f"n={column.num_rows:,}")])


def _table(whole: Breakdown, columns: Sequence[Column]) -> Table:
    table = new_table(whole.title, "arm")
    for column in columns:
        table.add_column(_heading(column), justify="right")
    for place, each in enumerate(whole.measured):
        if place and whole.measured[place - 1].kind != each.kind:
            table.add_section()
        table.add_row(name_cell(each.name, NAME_WIDTH), *(Text(column.cells[place]) for column in columns))
    return table


def markdown(results: Results) -> list[str]:
    """Returns the lines of these tables as Markdown."""
    lines = []
    for each in breakdowns(results):
        head = ["arm", *(f"{column.name} (n={column.num_rows:,})" for column in each.columns)]
        body = [[m.name, *(c.cells[place] for c in each.columns)] for place, m in enumerate(each.measured)]
        rows = [head, ["---"] * len(head), *body]
        lines += [f"## {each.title[:1].upper()}{each.title[1:]}", ""]
        lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows] + [""]
    return lines


def flat(results: Results, each: Measured) -> dict[str, Any]:
    """Returns the row of a model or arm in full precision, for CSV and JSON: means by category, win rates in percent."""
    row: dict[str, Any] = {}
    for metric in METRICS:
        for name, rows in results.categories.items():
            row[f"{metric.key}_in_{name}"] = results.per_seed(each, metric, rows).mean()
    for verifier in dict.fromkeys(verifier for verifier, _ in results.answers.rates):
        rate = results.answers.rates.get((verifier, each.name))
        shown = in_percent(rate) if rate else None
        numbers = (shown.value, shown.low, shown.high, shown.num_items) if shown else (None,) * 4
        row |= zip((f"win_rate_{verifier}{end}" for end in ("", "_low", "_high", "_rows")), numbers, strict=True)
    return row
