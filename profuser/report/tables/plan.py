"""Shows a plan made from a probe, and its errors: as rows of text for the page, and as tables for a terminal of 100 columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from profuser.planning.estimates import Extrapolation
from profuser.planning.plan_file import PlanError, ProbedPlan
from profuser.report.facts import RunFacts
from profuser.report.tables.table import name_cell, new_table

QUANTITIES = {
    "prompt_tokens": "prompt tokens",
    "training_tokens": "training tokens",
    "inference_tokens": "inference tokens",
    "seconds": "time",
    "device_hours": "device hours",
    "disk_bytes": "disk",
    "money": "money",
}
COVERED = (
    "Intervals are of 90 %: they cover differences in length between the rows drawn and the others. They do not cover the speed "
    "of a full queue (fewer rows at once are slower) or of a busy machine, waiting for nodes, repeated work after a failure, "
    "or files of other sizes that compress differently. Device hours, planned and measured, exclude the time "
    "that actors are idle while the last ones finish; those of an actor that died are measured up to its last shard."
)
INSIDE = {True: "yes", False: "no", None: "-"}


@dataclass(frozen=True)
class PlanErrorLine:
    """One quantity of a stage, planned and measured, as text."""

    stage: str
    quantity: str
    planned: str
    interval: str
    measured: str
    error: str
    inside: str
    """Whether the measured value is inside the interval: `yes`, `no`, or a dash if there is no interval."""


def plan_table(plan: ProbedPlan) -> Table:
    """Returns the estimates of every stage, with the margin of each number below it."""
    title = f"{plan.num_probed:,} of {plan.num_rows:,} rows probed, drawn under seed {plan.seed}"
    table = new_table(title, "stage")
    names = [name for name in QUANTITIES if name in plan.total or name == "seconds"]
    for name in names:
        table.add_column(_heading(name, plan.currency), justify="right")
    table.columns[0].overflow = "fold"
    for stage in plan.stages:
        table.add_row(name_cell(stage.stage), *_cells(stage.quantities, names))
    table.add_section()
    table.add_row("all", *_cells(plan.total, names))
    return table


def plan_words(plan: ProbedPlan) -> list[str]:
    """Returns notes on the numbers, a sentence each."""
    disks = [
        f"{amount('disk_bytes', size.value)} ({_margin(size)}) with {kind} signals"
        for kind, size in plan.disk_bytes.items()
    ]
    return [
        f"Disk for the sources' output: {', '.join(disks)}.",
        "Time: each stage alone, with all its actors and their start. A device is a GPU, or a CPU if an actor has none.",
        COVERED,
        *(f"{note[:1].upper()}{note[1:]}." for note in plan.notes),
    ]


def plan_error_lines(facts: RunFacts) -> list[PlanErrorLine]:
    """Returns a line per quantity that was both planned and measured."""
    currency = facts.recipe.get("plan", {}).get("currency", QUANTITIES["money"])
    return [_line(error, currency) for error in facts.plan_errors]


def plan_error_table(facts: RunFacts) -> Table:
    """Returns planned and measured quantities for a terminal."""
    table = new_table("plan and run", "stage")
    table.caption = COVERED
    table.add_column("quantity")
    for name in ("planned", "90 % interval", "measured", "error", "inside"):
        table.add_column(name, justify="right")
    for line in plan_error_lines(facts):
        table.add_row(*(Text(text) for text in vars(line).values()))
    table.columns[0].overflow = "fold"
    return table


def amount(quantity: str, value: float) -> str:
    """Formats a quantity with its unit: `1,234` for tokens and money, `12.3 min`, `4.56 MB`."""
    if quantity == "seconds":
        return _scaled(value, (("s", 1), ("min", 60), ("h", 3600)), 2)
    if quantity == "disk_bytes":
        return _scaled(value, (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)), 1)
    if quantity in ("device_hours", "money"):
        return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"
    return f"{value:,.0f}"


def _scaled(value: float, units: tuple[tuple[str, float], ...], enough: float) -> str:
    """Formats a value in the largest unit of which it has at least `enough`."""
    name, size = next((unit for unit in reversed(units) if value >= enough * unit[1]), units[0])
    return f"{value / size:,.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"


def _heading(quantity: str, currency: str) -> Text:
    return Text(_title(quantity, currency).replace(" ", "\n"))


def _title(quantity: str, currency: str) -> str:
    return currency if quantity == "money" else QUANTITIES[quantity]


def _cells(quantities: Mapping[str, Extrapolation], names: list[str]) -> list[str]:
    return [
        f"{amount(name, quantities[name].value)}\n{_margin(quantities[name])}" if name in quantities else ""
        for name in names
    ]


def _margin(estimate: Extrapolation) -> str:
    if estimate.margin is None:
        return "+- ?"
    return f"+-{100 * estimate.margin / estimate.value:.2g} %" if estimate.margin else "exact"


def _line(error: PlanError, currency: str) -> PlanErrorLine:
    planned = error.planned
    ends = [amount(error.quantity, end) for end in (planned.low, planned.high) if end is not None]
    return PlanErrorLine(
        error.stage,
        _title(error.quantity, currency),
        amount(error.quantity, planned.value),
        " to ".join(ends) or "-",
        amount(error.quantity, error.measured),
        f"{100 * error.error:+.1f} %" if math.isfinite(error.error) else "-",
        INSIDE[planned.covers(error.measured)],
    )
