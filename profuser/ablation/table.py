"""Writes the ablation table for a terminal and as Markdown, CSV and JSON, with its cost and provenance."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from profuser.ablation import breakdown
from profuser.ablation.arms import Ablation
from profuser.ablation.results import ORACLE, UNMATCHED, ArmDifference, Measured, Results
from profuser.artifacts.artifact import Manifest, read_manifest
from profuser.report.measures import METRICS, Metric
from profuser.report.tables.table import new_table
from profuser.run.fusion_run import FusionRun


@dataclass(frozen=True)
class Provenance:
    """Cost and provenance of a table."""

    stage_seconds: float
    """Sum over all stages of all runs, each counted once, without the start of Ray and engine processes."""
    device_seconds: float
    """Seconds that GPUs, or CPUs if there are none, were held."""
    shared_seconds: float
    """Part of `stage_seconds` spent on the base: the teachers' pass and the scores of target and sources."""
    commits: tuple[str, ...]
    """Git commits at which the arms were trained."""
    machine: str
    """Machine on which the table was written."""

    def text(self) -> str:
        """Formats it as one sentence."""
        share = f"{self.shared_seconds / 3600:.2f} of them shared by all arms"
        commits = ", ".join(self.commits) or "unknown"
        hours = (
            f"{self.stage_seconds / 3600:.2f} hours of stages ({share}), {self.device_seconds / 3600:.2f} device-hours"
        )
        return f"{hours}; {self.machine}; commit {commits}"


def table_cost(ablation: Ablation, machine: str) -> Provenance:
    """Sums the manifests of the base and of the finished arms."""
    shared = _manifests(ablation.base, ablation.shared)
    own = [m for each in ablation.finished() for m in _manifests(each.run, each.parts)]
    commits = dict.fromkeys(m.commit for m in own if m.commit and m.stage == "fuse")
    return Provenance(
        stage_seconds=sum(m.seconds for m in shared + own),
        device_seconds=sum(m.device_seconds for m in shared + own),
        shared_seconds=sum(m.seconds for m in shared),
        commits=tuple(commits),
        machine=machine,
    )


def _manifests(run: FusionRun, stages: Iterable[str]) -> list[Manifest]:
    """Reads the manifests in the run's own folder; artifacts of another run are counted there."""
    return [manifest for stage in stages if (manifest := read_manifest(run.folder / stage))]


def spread(values: Sequence[float], metric: Metric) -> str:
    """Formats the smallest and largest value of the seeds; a dash for a single seed."""
    return f"{metric.text(min(values))} - {metric.text(max(values))}" if len(values) > 1 else "-"


def cells(results: Results, each: Measured, metric: Metric) -> list[str]:
    """Returns a row of one metric's table: name, seeds, updates, tokens, cost, mean, spread, comparison with each reference."""
    tokens = f"{mean_of(each.tokens) / 1000:,.0f}" if each.tokens else "-"
    seeds = str(len(each.updates) or "-")
    return [
        each.name,
        seeds,
        _updates(each),
        tokens,
        f"{mean_of(each.device_hours):.3f}" if each.device_hours else "-",
        *_values(results, each, metric),
        *_differences(results, each, metric),
    ]


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean of the seeds."""
    return sum(values) / len(values)


def _updates(each: Measured) -> str:
    return "/".join(str(number) for number in sorted(set(each.updates))) or "-"


def _values(results: Results, each: Measured, metric: Metric) -> list[str]:
    values = results.per_seed(each, metric)
    return [metric.text(values.mean()), spread(values.tolist(), metric)]


def _differences(results: Results, each: Measured, metric: Metric) -> list[str]:
    return [_against(results, each, name, metric) for name in results.references]


def _against(results: Results, each: Measured, reference: str, metric: Metric) -> str:
    if each.name == reference:
        return ""
    comparison = results.comparisons[metric.name, each.name, reference]
    if comparison is None:
        return UNMATCHED if np.isfinite(each.values(metric)).all() else "-"
    return comparison.text(metric)


def headings(results: Results, metric: Metric) -> list[str]:
    """Returns the headings of `cells`."""
    return [
        "arm",
        "seeds",
        "updates",
        "tokens, k",
        "device-hours",
        metric.title,
        "seeds' range",
        *(f"less {n}" for n in results.references),
    ]


def notes(results: Results) -> list[str]:
    """Returns explanations of the tables."""
    trained = [each for each in results.measured if each.updates]
    out = [
        f"{results.num_rows:,} held-out rows that no model refused; {'; '.join(f'{m.name}: {m.hint}' for m in METRICS)}.",
        "Intervals are of 95 %, over rows paired between both models, and include the spread between seeds if "
        "there are several. Verdicts are corrected for comparing all rows of a column with one arm (Holm, 1979).",
    ]
    if any(each.kind == "oracle" for each in results.measured):
        out.append(f"{ORACLE}: the source that is best on each row in this metric, chosen with the ground truth.")
    if any(len(each.updates) == 1 for each in trained):
        out.append("The spread between seeds is unknown for an arm of one seed: its intervals are too narrow.")
    if trained:
        out.append("Device-hours: held by an arm's own stages until its model was trained, mean of the seeds.")
    if not results.references:
        out.append("Neither sft-gt nor progressive is among the arms: nothing is compared.")
    if UNMATCHED in {_against(results, e, name, m) for e in trained for name in results.references for m in METRICS}:
        out.append(
            f"{UNMATCHED}: the numbers of updates or tokens differ from the reference's, so no difference is given."
        )
    return [*out, *breakdown.notes(results)]


def render(results: Results) -> list[Table]:
    """Returns a table per metric for a terminal, with each verdict below its difference, then those by category and verifier."""
    out = []
    for metric in METRICS:
        table = new_table(f"{metric.title}, {results.num_rows:,} held-out rows ({metric.hint})", "arm")
        table.columns[0].no_wrap = True
        for name in ("seeds x\nupdates", "mean", "seeds' range"):
            table.add_column(name, justify="right")
        for name in results.references:
            table.add_column(f"less {name}")
        for before, each in zip((None, *results.measured), results.measured, strict=False):
            if before and before.kind != each.kind:
                table.add_section()
            trained = f"{len(each.updates)} x {_updates(each)}" if each.updates else "-"
            differences = [text.replace("] ", "]\n") for text in _differences(results, each, metric)]
            row = (each.name, trained, *_values(results, each, metric), *differences)
            table.add_row(*(Text(cell) for cell in row))
        out.append(table)
    return [*out, *breakdown.render(results)]


def markdown(name: str, results: Results, made: Provenance) -> str:
    """Returns all tables, notes, cost and the description of each arm as Markdown."""
    lines = [f"# Ablation {name}", ""]
    for metric in METRICS:
        head = headings(results, metric)
        rows = [head, ["---"] * len(head), *(cells(results, each, metric) for each in results.measured)]
        lines += [f"## {metric.title[:1].upper()}{metric.title[1:]}", ""]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    lines += breakdown.markdown(results)
    lines += [f"- {note}" for note in (*notes(results), made.text() + ".")] + [""]
    lines += ["## Arms", "", *(f"- **{each.name}**: {each.about}" for each in results.measured if each.about)]
    return "\n".join(lines) + "\n"


def flat_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a row per model or arm, in full precision, for CSV and JSON."""
    return [_flat(results, each) for each in results.measured]


def _flat(results: Results, each: Measured) -> dict[str, Any]:
    row: dict[str, Any] = {"name": each.name, "kind": each.kind, "seeds": len(each.updates) or None}
    row |= {"updates": each.updates[0] if len(set(each.updates)) == 1 else None}
    row |= {"tokens": mean_of(each.tokens) if each.tokens else None}
    row |= {"device_hours": mean_of(each.device_hours) if each.device_hours else None}
    for metric in METRICS:
        key, values = metric.key, results.per_seed(each, metric)
        row |= {key: values.mean(), f"{key}_min": values.min(), f"{key}_max": values.max()}
        for reference in results.references:
            found = results.comparisons.get((metric.name, each.name, reference))
            row |= {f"{key}_less_{reference}_{name}": value for name, value in _fields(found).items()}
    return row | breakdown.flat(results, each)


def _fields(comparison: ArmDifference | None) -> dict[str, Any]:
    return asdict(comparison) if comparison else dict.fromkeys(ArmDifference.__dataclass_fields__)


def as_json(name: str, results: Results, made: Provenance) -> dict[str, Any]:
    """Returns everything, for programs and notebooks: rows as in the CSV, with per-seed values and descriptions of the arms."""
    rows = [
        row
        | {
            "about": each.about,
            "per_seed": {m.key: results.per_seed(each, m).tolist() for m in METRICS},
        }
        for row, each in zip(flat_rows(results), results.measured, strict=True)
    ]
    categories = {name: int(own.sum()) for name, own in results.categories.items()}
    whole = {"name": name, "num_rows": results.num_rows, "categories": categories, "notes": notes(results)}
    return whole | {"made": asdict(made), "rows": rows}
