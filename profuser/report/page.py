"""The report as one HTML file that needs nothing else: no network, no script, pictures inlined."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from profuser.report.facts import RULES, RunFacts, StageFact
from profuser.report.headline import headline
from profuser.report.metrics import METRICS, Change, Metric
from profuser.report.pictures import Picture, pictures
from profuser.report.plan_tables import COVERED, plan_error_lines
from profuser.report.selection_tables import KAPPA, LENGTH_RHO, LONGER_WINS, selection_words, share, signed
from profuser.report.tables import csv_text, percent, score_table
from profuser.run import FUSED, TARGET
from profuser.schemas import MODES

MOST_QUARANTINED = 50
MOST_SAMPLES = 20
OWN_COLUMNS = ("rows", "tokens")
"""Counts of a stage that have a column of their own."""


@dataclass(frozen=True)
class ScoreLine:
    """One category of a table of scores, as text."""

    category: str
    num_rows: int
    cells: Mapping[str, str]
    """By model."""
    better_model: str | None
    change: str
    verdict: str


def write_report(facts: RunFacts, folder: Path) -> Path:
    """Writes `index.html`, `scores.csv`, and in `plots/` each picture as PNG with its numbers as CSV.

    Returns:
        The path of `index.html`.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    drawn = pictures(facts)
    for name, picture in drawn.items():
        (folder / "plots" / f"{name}.png").write_bytes(picture.png())
        (folder / "plots" / f"{name}.csv").write_text(csv_text(picture.rows), encoding="utf-8")
    (folder / "scores.csv").write_text(csv_text([asdict(row) for row in score_table(facts)]), encoding="utf-8")
    path = folder / "index.html"
    # A lone surrogate in an answer must not cost the report.
    path.write_text(render_page(facts, drawn), encoding="utf-8", errors="replace")
    return path


def render_page(facts: RunFacts, drawn: Mapping[str, Picture]) -> str:
    """The page with these pictures, by name; the place of one that is not there stays empty."""
    # Autoescape is on for every template, whatever its suffix: answers of models are not to be trusted.
    environment = Environment(
        loader=PackageLoader("profuser.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "share": share, "signed": signed}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        headline=headline(facts),
        pictures=drawn,
        score_tables={metric: score_lines(facts, metric) for metric in METRICS},
        selection_words=selection_words(facts),
        plan_errors=plan_error_lines(facts),
        plan_covered=COVERED,
        meanings={"longer wins": LONGER_WINS, "length rho": LENGTH_RHO, "kappa": KAPPA},
        win_totals={mode: sum(getattr(row, mode) for row in facts.wins()) for mode in MODES},
        other_counts={stage.name: other_counts(stage) for stage in facts.stages},
        recipe_yaml=yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True, width=100),
        rules=RULES,
        quarantined=facts.quarantined[:MOST_QUARANTINED],
        samples=facts.samples[:MOST_SAMPLES],
        target=TARGET,
        fused=FUSED,
    )


def score_lines(facts: RunFacts, metric: Metric) -> list[ScoreLine]:
    """One line per category for one metric."""
    lines = []
    for category in facts.categories:
        change = Change.of(facts, metric, category)
        cells = {model: metric.text(metric.of(facts.score(model, category))) for model in facts.models}
        lines.append(
            ScoreLine(category, facts.num_rows(category), cells, change.better_model, change.text, change.verdict)
        )
    return lines


def other_counts(stage: StageFact) -> str:
    """Counts that have no column, and metrics, in one phrase; those that have a section of their own (`wins/...`) are left out."""
    counts = [
        f"{name.replace('_', ' ')} {value:,.0f}"
        for name, value in stage.counts.items()
        if name not in OWN_COLUMNS and "/" not in name
    ]
    metrics = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in stage.metrics.items() if "/" not in name]
    return ", ".join([*counts, *metrics])
