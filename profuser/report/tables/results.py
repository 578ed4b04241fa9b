"""Shows results with their intervals, as lines of text for the page and as tables for a terminal of 80 columns or more."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from profuser.evaluation.judged import JudgedWinRate
from profuser.report.comparisons import in_percent, preference
from profuser.report.facts import ALL, ModelDifference, RunFacts
from profuser.report.measures import METRICS, SCORE, Change, Metric, p_text
from profuser.report.tables.table import model_header, name_cell, new_table
from profuser.run.stages import FUSED, TARGET

NO_BENCHMARK = "No benchmark was measured: the recipe names none (evaluate.benchmarks)."
NOT_YET = "No benchmark is finished yet."
NOT_JUDGED = "The answers were not judged: the recipe turns it off (evaluate.judged), or the stage is not finished yet."


@dataclass(frozen=True)
class ScoreLine:
    """One category of a table of held-out scores, or one benchmark, as text."""

    name: str
    num_items: int
    cells: Mapping[str, str]
    """Value by model."""
    intervals: Mapping[str, str]
    """Interval by model, for models that have one."""
    better_model: str | None = None
    change: str = ""
    """Change from the target to the fused model; empty in a table without changes."""
    interval: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class ComparisonCell:
    """The fused model minus one other model on one measure, as text."""

    difference: str
    interval: str
    p_value: str
    verdict: str


@dataclass(frozen=True)
class ComparisonLine:
    """The fused model against all others on one measure."""

    measure: str
    num_items: int
    cells: Mapping[str, ComparisonCell]
    """Difference by the other model."""


@dataclass(frozen=True)
class JudgedLine:
    """The fused model's answers against another model's under one judge, as text."""

    judge: str
    model: str
    rate: str
    interval: str
    even_rate: str
    """Win rate at equal length."""
    even_interval: str
    outcomes: str
    """Rows won, lost and tied."""
    p_value: str
    """Sign test over the rows won and lost."""
    characters: str
    verdict: str


def score_lines(facts: RunFacts, metric: Metric) -> list[ScoreLine]:
    """Returns a line per category for one held-out metric."""
    lines = []
    for category in facts.categories:
        change = Change.of(facts, metric, category)
        cells = {model: metric.text(metric.of(facts.score(model, category))) for model in facts.models}
        own = (change.better_model, change.text, change.interval, change.verdict)
        lines.append(ScoreLine(category, facts.num_rows(category), cells, {}, *own))
    return lines


def judged_category_lines(facts: RunFacts) -> list[ScoreLine]:
    """Returns a line per category for the win rates at equal length under the majority vote; none without categories."""
    found = facts.judged_by_category
    every = {ALL: next(iter(facts.judged.values()))} | dict(found) if found and facts.judged else {}
    lines = []
    for category, rates in every.items():
        even = {model: in_percent(rate.length_controlled) for model, rate in rates.items()}
        num_rows = max(rate.num_items for rate in even.values())
        cells = {model: f"{SCORE.text(rate.value)} %" for model, rate in even.items()}
        intervals = {model: SCORE.interval(rate) for model, rate in even.items()}
        lines.append(ScoreLine(category, num_rows, cells, intervals))
    return lines


def benchmark_models(facts: RunFacts) -> list[str]:
    """Returns the models that have finished a benchmark, in the order of the scores."""
    found = dict.fromkeys(model for scores in facts.benchmarks.values() for model in scores)
    return sorted(found, key=lambda model: (model == FUSED, model != TARGET))


def benchmark_lines(facts: RunFacts) -> list[ScoreLine]:
    """Returns a line per benchmark."""
    lines = []
    for name, scores in facts.benchmarks.items():
        found = facts.comparison(name)
        verdict = found.verdict if found else "unknown"
        lines.append(
            ScoreLine(
                name,
                max(score.num_items for score in scores.values()),
                {model: SCORE.text(score.value) for model, score in scores.items()},
                {model: SCORE.interval(score) for model, score in scores.items()},
                {"better": FUSED, "worse": TARGET}.get(verdict),
                SCORE.text(found.difference.value, sign=True) if found else "-",
                SCORE.interval(found.difference) if found else "",
                verdict,
            )
        )
    return lines


def no_benchmarks(facts: RunFacts) -> str:
    """Returns the reason why there is no table of benchmarks."""
    named = (facts.recipe.get("evaluate") or {}).get("benchmarks")
    return NOT_YET if named else NO_BENCHMARK


def failed_benchmarks(facts: RunFacts) -> dict[str, str]:
    """Returns the benchmarks that failed, as `gsm8k of fused`, with the reasons."""
    found = ((name.split("/", 2), reason) for name, reason in facts.failures.items())
    return {
        f"{benchmark} of {facts.label(model)}": reason
        for (stage, model, benchmark), reason in found
        if stage == "benchmarks"
    }


def comparison_lines(facts: RunFacts) -> list[ComparisonLine]:
    """Returns a line per measure, over all its items."""
    whole = [found for found in facts.comparisons if found.category == ALL]
    lines = []
    for measure in dict.fromkeys(found.measure for found in whole):
        own = [found for found in whole if found.measure == measure]
        metric = metric_of(measure)
        title = f"{measure}, points" if metric.unit else measure
        cells = {found.model: _against(facts, metric, found) for found in own}
        lines.append(ComparisonLine(title, own[0].difference.num_items, cells))
    return lines


def _against(facts: RunFacts, metric: Metric, found: ModelDifference) -> ComparisonCell:
    # For held-out metrics, the difference of the rounded values, as everywhere in the report.
    change = Change(metric, metric.of(facts.score(found.model)), metric.of(facts.score(FUSED)))
    value = metric.text(found.difference.value, sign=True) if metric is SCORE else change.text
    return ComparisonCell(value, metric.interval(found.difference), p_text(found.p_value), found.verdict)


def metric_of(measure: str) -> Metric:
    """Returns the format of a measure: a held-out metric's, or `SCORE` for a benchmark."""
    return next((metric for metric in METRICS if metric.name == measure), SCORE)


def comparison_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns a row per comparison, for a CSV."""
    return [
        {
            "measure": found.measure,
            "category": found.category,
            "against": found.model,
            **asdict(found.difference),
            "adjusted_p_value": found.p_value,
            "verdict": found.verdict,
        }
        for found in facts.comparisons
    ]


def judged_lines(facts: RunFacts) -> list[JudgedLine]:
    """Returns a line per judge and other model, the majority vote first."""
    return [
        _judged(facts, judge, model, rate) for judge, rates in facts.judged.items() for model, rate in rates.items()
    ]


def _judged(facts: RunFacts, judge: str, model: str, rate: JudgedWinRate) -> JudgedLine:
    raw, even = in_percent(rate.raw), in_percent(rate.length_controlled)
    return JudgedLine(
        judge=judge,
        model=facts.label(model),
        rate=f"{SCORE.text(raw.value)} %",
        interval=SCORE.interval(raw),
        even_rate=f"{SCORE.text(even.value)} %",
        even_interval=SCORE.interval(even),
        outcomes=f"{rate.num_won:,} / {rate.num_lost:,} / {rate.num_ties:,}",
        p_value=p_text(rate.p_value),
        characters=" / ".join(f"{mean:,.0f}" for mean in rate.mean_characters),
        verdict=preference(rate.length_controlled).verdict(larger_is_better=True),
    )


def benchmark_table(facts: RunFacts) -> Table:
    """Returns the benchmarks for a terminal; no row if none was measured."""
    table = new_table("benchmarks, %, fused against target with the 95 % interval of the difference", "benchmark")
    table.add_column("items", justify="right")
    models = benchmark_models(facts)
    for model in models:
        table.add_column(model_header(facts.label(model)), justify="right", no_wrap=True)
    table.add_column("change", justify="right")
    table.add_column("")
    for line in benchmark_lines(facts):
        cells = [Text(line.cells.get(m, "-"), style="bold" if m == line.better_model else "") for m in models]
        change = Text(f"{line.change}\n{line.interval}")
        table.add_row(name_cell(line.name), f"{line.num_items:,}", *cells, change, line.verdict)
    return table


def judged_table(facts: RunFacts) -> Table:
    """Returns the fused model's win rates under the majority vote, for a terminal."""
    table = new_table("judged win rates of the fused model, ties half, with 95 % intervals", "against")
    table.caption = "p: sign test over the rows won and lost\nverdict: of the rate at equal length against 50 %"
    for name in ("win rate", "at equal\nlength", "won / lost /\ntied", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    majority = next(iter(facts.judged), None)
    for line in judged_lines(facts):
        if line.judge == majority:
            rates = (f"{line.rate}\n{line.interval}", f"{line.even_rate}\n{line.even_interval}")
            table.add_row(name_cell(line.model, 10), *rates, line.outcomes, line.p_value, line.verdict)
    return table
