"""Renders the report as one self-contained HTML file: no network, no script, pictures inlined."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from profuser.artifacts.schemas import MODES
from profuser.report.facts import ALL, RunFacts
from profuser.report.headline import headline
from profuser.report.measures import METRICS
from profuser.report.pictures import Picture, pictures
from profuser.report.tables.loss import has_pairs, stage_loss_lines
from profuser.report.tables.pipeline import corpus_words, cost_words, flow, stage_lines, total_line
from profuser.report.tables.plan import COVERED, plan_error_lines
from profuser.report.tables.results import (
    NOT_JUDGED,
    benchmark_lines,
    benchmark_models,
    comparison_lines,
    comparison_rows,
    failed_benchmarks,
    judged_category_lines,
    judged_lines,
    no_benchmarks,
    score_lines,
)
from profuser.report.tables.selection import (
    KAPPA,
    LENGTH_RHO,
    LONGER_WINS,
    agreement_lines,
    aligned_lines,
    judge_lines,
    selection_words,
    share,
    signed,
    taught_lines,
    verdict_lines,
    win_rate_lines,
)
from profuser.report.tables.table import csv_text, percent, score_table
from profuser.report.tables.writing import WRITING, writing_lines, writing_rows
from profuser.run.stages import FUSED, TARGET
from profuser.signals.rules import RULES

MOST_QUARANTINED = 50
MOST_SAMPLES = 20
SECTIONS = {
    "pipeline": "Pipeline, time and cost",
    "plan": "Plan",
    "results": "Fused against the others",
    "benchmarks": "Benchmarks",
    "judged": "Judged win rates",
    "scores": "Held-out scores",
    "writing": "How the models write",
    "wins": "Who teaches what",
    "duels": "Who beats whom",
    "judges": "Judges",
    "alignment": "Alignment",
    "losses": "Losses",
    "samples": "Sample answers",
    "quarantine": "Quarantined rows",
    "recipe": "Recipe",
}
INTERVALS = (
    "Both models are measured on the same items. In small type: 95 % intervals (Tango's where answers are right or wrong, else "
    "Student's t). p: p-value of no difference (exact where answers are right or wrong or few items differ), adjusted for the "
    "number of models (Holm). "
    "Within noise: the interval includes 0, or p is 0.05 or more. Among many categories some differ by chance."
)


def write_report(facts: RunFacts, folder: Path) -> Path:
    """Writes `index.html`, `scores.csv`, `writing.csv`, `comparisons.csv`, and each picture in `plots/` as PNG and CSV.

    Returns:
        The path of `index.html`.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    drawn = pictures(facts)
    for name, picture in drawn.items():
        (folder / "plots" / f"{name}.png").write_bytes(picture.png())
        (folder / "plots" / f"{name}.csv").write_text(csv_text(picture.rows), encoding="utf-8")
    (folder / "scores.csv").write_text(csv_text([asdict(row) for row in score_table(facts)]), encoding="utf-8")
    (folder / "writing.csv").write_text(csv_text(writing_rows(facts)), encoding="utf-8")
    (folder / "comparisons.csv").write_text(csv_text(comparison_rows(facts)), encoding="utf-8")
    path = folder / "index.html"
    # A lone surrogate in an answer must not fail the report.
    path.write_text(render_page(facts, drawn), encoding="utf-8", errors="replace")
    return path


def render_page(facts: RunFacts, drawn: Mapping[str, Picture]) -> str:
    """Renders the page with these pictures, by name; a missing picture is left out."""
    # Autoescape is on for every template, whatever its suffix: models' answers are untrusted.
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
        sections=sections(facts),
        pictures=drawn,
        target=TARGET,
        fused=FUSED,
        **_pipeline(facts),
        **_results(facts),
        selection_words=selection_words(facts),
        verdict_lines=verdict_lines(facts),
        taught={mode: taught_lines(facts, mode) for mode in MODES},
        beats={mode: win_rate_lines(facts, mode) for mode in MODES},
        agreed=agreement_lines(facts),
        judged_by=judge_lines(facts),
        aligned=aligned_lines(facts),
        same_names=lambda names: {name: name for name in names},
        model_labels=lambda names: {name: facts.label(name) for name in names},
        source_labels=lambda names: {name: facts.source_label(name) for name in names},
        all=ALL,
        meanings={"longer wins": LONGER_WINS, "length rho": LENGTH_RHO, "kappa": KAPPA},
        win_totals={mode: sum(getattr(row, mode) for row in facts.wins()) for mode in MODES},
        rules={name: record.meaning for name, record in RULES.items()},
        stage_losses=stage_loss_lines(facts),
        has_pairs=has_pairs(facts.history),
        corpus_words=corpus_words(facts),
        quarantined=facts.quarantined[:MOST_QUARANTINED],
        samples=facts.samples[:MOST_SAMPLES],
        recipe_yaml=_yaml(facts.recipe),
        settings_yaml=_yaml(facts.settings) if facts.settings else "",
    )


def sections(facts: RunFacts) -> dict[str, str]:
    """Returns anchors and titles of the page's sections, in order."""
    return {anchor: title for anchor, title in SECTIONS.items() if anchor != "plan" or facts.plan_errors}


def _pipeline(facts: RunFacts) -> dict[str, Any]:
    return {
        "flow": flow(facts),
        "stages": stage_lines(facts),
        "total": total_line(facts),
        "cost_words": cost_words(facts),
        "currency": (facts.recipe.get("plan") or {}).get("currency", "money"),
        "plan_errors": plan_error_lines(facts),
        "plan_covered": COVERED,
    }


def _results(facts: RunFacts) -> dict[str, Any]:
    others = list(dict.fromkeys(found.model for found in facts.comparisons if found.model != TARGET))
    return {
        "against": comparison_lines(facts),
        "others": others,
        "interval_words": INTERVALS,
        "benchmarks": benchmark_lines(facts),
        "benchmark_models": benchmark_models(facts),
        "no_benchmarks": no_benchmarks(facts),
        "failed_benchmarks": failed_benchmarks(facts),
        "judged": judged_lines(facts),
        "judged_categories": judged_category_lines(facts),
        "not_judged": NOT_JUDGED,
        "writing": writing_lines(facts),
        "writing_words": WRITING,
        "score_tables": {metric: score_lines(facts, metric) for metric in METRICS},
    }


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=100)
