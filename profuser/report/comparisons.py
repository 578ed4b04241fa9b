"""Compares the fused model with every other model on the same items, with intervals: from item tables to a report's facts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from profuser.evaluation import comparison as items
from profuser.evaluation.heldout import common_rows
from profuser.evaluation.statistics import Difference, Estimate, estimate
from profuser.report.facts import ALL, ModelDifference
from profuser.report.measures import BITS_PER_BYTE, EXACT_MATCH
from profuser.run.stages import FUSED

NAMES = {items.BITS_PER_BYTE: BITS_PER_BYTE.name, items.EXACT_MATCH: EXACT_MATCH.name}
"""Report names of the held-out metrics."""
PERCENT = 100.0
"""Factor from shares to percent, and from their differences to percentage points."""


def heldout_comparisons(tables: Mapping[str, pa.Table]) -> list[ModelDifference]:
    """Compares both held-out metrics with every other model, on the rows that no model refused and on each of their categories.

    Args:
        tables: evaluate tables by model. The result is empty if the fused model is not among them or no row is left.
    """
    out = []
    for category, ids in common_rows(tables).items() if FUSED in tables else ():
        kept = {name: [_of_rows(table, ids)] for name, table in tables.items()}
        for metric in items.heldout_metrics(kept):
            out += _comparisons(metric, category)
    return out


def _of_rows(table: pa.Table, ids: set[str]) -> pa.Table:
    return table.filter(pa.array([row_id in ids for row_id in table["row_id"].to_pylist()], pa.bool_()))


def benchmark_comparisons(benchmarks: Mapping[str, Mapping[str, pa.Table]]) -> list[ModelDifference]:
    """Compares the fused model's score on every benchmark with every other model that has finished it.

    Args:
        benchmarks: as returned by `read_benchmarks`.
    """
    by_model: dict[str, dict[str, pa.Table]] = {}
    for name, tables in benchmarks.items():
        for model, table in tables.items():
            by_model.setdefault(model, {})[name] = table
    metrics = items.benchmark_metrics({model: [tables] for model, tables in by_model.items()})
    return [found for metric in metrics for found in _comparisons(metric, ALL)]


def _comparisons(metric: items.MetricScores, category: str) -> Sequence[ModelDifference]:
    unit = 1.0 if metric.name == items.BITS_PER_BYTE else PERCENT
    pairs = [(FUSED, model) for model in metric.values if model != FUSED]
    return [
        ModelDifference(
            measure=NAMES.get(found.metric, found.metric),
            category=category,
            model=found.baseline,
            difference=found.difference.times(unit),
            p_value=found.adjusted_p_value,
            verdict=found.verdict,
        )
        for found in items.contrasts(metric, pairs)
    ]


def benchmark_estimates(benchmarks: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, dict[str, Estimate]]:
    """Returns every model's score on every benchmark, in percent: `{benchmark: {model: estimate}}`."""
    return {
        name: {model: in_percent(estimate(table["score"].to_pylist())) for model, table in tables.items() if len(table)}
        for name, tables in benchmarks.items()
    }


def preference(rate: Estimate) -> Difference:
    """Returns a judged win rate minus 50 %, in percentage points: above 0, the fused model's answers are preferred."""
    even = Difference(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5, math.nan, rate.num_items, "")
    return even.times(PERCENT)


def in_percent(found: Estimate) -> Estimate:
    """Converts an estimate of a share to percent."""
    return replace(found, value=PERCENT * found.value, low=PERCENT * found.low, high=PERCENT * found.high)
