"""Compares several models on the same items: each value with its interval, and differences with a verdict in words.

Legend: N items common to all models (held-out rows, questions of a benchmark), S seeds of one model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from profuser.config import flatten, identity
from profuser.errors import UserError
from profuser.evaluation.heldout import common_rows
from profuser.evaluation.statistics import NOISE, Difference, Estimate, estimate, holm, paired_difference
from profuser.recipe.models import Recipe
from profuser.selection.advantage import LN2

BITS_PER_BYTE, EXACT_MATCH = "bits_per_byte", "exact_match"
SIGNIFICANT = 0.05
"""Holm-adjusted p-value at or above which a difference is called noise, whatever its interval."""
IGNORED_SETTINGS = ("name", "fuse.seed")
"""Settings in which runs of one arm may differ."""


@dataclass(frozen=True)
class MetricScores:
    """Scores of every model on every item."""

    name: str
    larger_is_better: bool
    values: Mapping[str, Float[np.ndarray, "_ N"]]
    """Values by model, one row per seed."""
    denominators: Float[np.ndarray, "N"] | None = None
    """A model's value is the sum of its values over the sum of these; None for the mean."""

    @property
    def num_items(self) -> int:
        """N."""
        return next(iter(self.values.values())).shape[1]

    def estimates(self) -> dict[str, Estimate]:
        """Returns every model's value with its 95 % interval."""
        return {name: estimate(values, denominators=self.denominators) for name, values in self.values.items()}


@dataclass(frozen=True)
class Contrast:
    """Comparison of two models in one metric."""

    metric: str
    larger_is_better: bool
    model: str
    baseline: str
    difference: Difference
    """The model's value minus the baseline's."""
    adjusted_p_value: float
    """P-value, Holm-adjusted over the contrasts of this metric."""

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes 0 and the adjusted p-value is below 5 %; else `within noise`."""
        if self.adjusted_p_value >= SIGNIFICANT:
            return NOISE
        return self.difference.verdict(larger_is_better=self.larger_is_better)


def heldout_metrics(models: Mapping[str, Sequence[pa.Table]]) -> list[MetricScores]:
    """Returns bits per byte and exact match on the rows that every model accepted; empty if no such row is left.

    Args:
        models: evaluate tables by model, one per seed.
    """
    tables = {f"{name}/{seed}": table for name, seeds in models.items() for seed, table in enumerate(seeds)}
    kept = sorted(common_rows(tables)["all"]) if tables else []
    if not kept:
        return []
    nats, correct = (
        {name: _matrix(seeds, "row_id", c, kept) for name, seeds in models.items()} for c in ("nats", "correct")
    )
    # A model that cannot teacher-force has no bits per byte.
    nats = {name: values for name, values in nats.items() if np.isfinite(values).all()}
    num_bytes = _matrix([next(iter(tables.values()))], "row_id", "response_bytes", kept)[0]
    return [
        MetricScores(BITS_PER_BYTE, False, {name: values / LN2 for name, values in nats.items()}, num_bytes),
        MetricScores(EXACT_MATCH, True, correct),
    ]


def benchmark_metrics(models: Mapping[str, Sequence[Mapping[str, pa.Table]]]) -> list[MetricScores]:
    """Returns every benchmark that at least two models have, on the items that they have in common.

    Args:
        models: by model, one mapping per seed from benchmark to its table of `item_id` and `score`.
    """
    out = []
    for benchmark in dict.fromkeys(name for seeds in models.values() for seed in seeds for name in seed):
        having = {
            name: [seed[benchmark] for seed in seeds]
            for name, seeds in models.items()
            if seeds and all(benchmark in seed for seed in seeds)
        }
        kept = _common(table["item_id"].to_pylist() for tables in having.values() for table in tables)
        if len(having) > 1 and kept:
            values = {name: _matrix(tables, "item_id", "score", kept) for name, tables in having.items()}
            out.append(MetricScores(benchmark, True, values))
    return out


def contrasts(metric: MetricScores, pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
    """Returns the differences of pairs (the first minus the second), Holm-adjusted; skips a pair if a model has no values."""
    found = []
    for model, baseline in pairs:
        if model in metric.values and baseline in metric.values:
            difference = paired_difference(
                metric.values[model], metric.values[baseline], denominators=metric.denominators
            )
            found.append(
                Contrast(metric.name, metric.larger_is_better, model, baseline, difference, difference.p_value)
            )
    adjusted = holm([contrast.difference.p_value for contrast in found])
    return [replace(contrast, adjusted_p_value=p) for contrast, p in zip(found, adjusted, strict=True)]


def differences(tables: Mapping[str, pa.Table], baseline: str) -> dict[str, dict[str, Difference]]:
    """Returns every other model minus the baseline on the rows that every model accepted; empty if no such row is left.

    Args:
        tables: evaluate tables by model.
        baseline: the model that the others are compared with, e.g. `target`.

    Returns:
        `{model: {"bits_per_byte": difference, "exact_match": difference}}`; bits (less is better) and shares, 0 to 1.
    """
    metrics = heldout_metrics({name: [table] for name, table in tables.items()})
    return {
        name: {
            metric.name: paired_difference(
                metric.values[name], metric.values[baseline], denominators=metric.denominators
            )
            for metric in metrics
            if name in metric.values
        }
        for name in tables
        if metrics and name != baseline
    }


def seed_groups(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Groups the runs of one arm, which differ only in name and `fuse.seed`, under the name of the first.

    Raises:
        UserError: two runs of an arm have the same seed, so they are one measurement, not two.
    """
    groups: dict[str, list[str]] = {}
    firsts: dict[str, str] = {}
    for name, recipe in recipes.items():
        settings = flatten(identity(recipe))
        arm = json.dumps({k: v for k, v in settings.items() if k not in IGNORED_SETTINGS}, sort_keys=True)
        groups.setdefault(firsts.setdefault(arm, name), []).append(name)
    for names in groups.values():
        seeds: dict[int, str] = {}
        for name in names:
            twin = seeds.setdefault(recipes[name].training_seed, name)
            if twin != name:
                seed = recipes[name].training_seed
                raise UserError(
                    f"--group-seeds: {twin} and {name} are the same arm with the same seed ({seed}); leave one out"
                )
    return groups


def _matrix(tables: Sequence[pa.Table], key: str, column: str, kept: Sequence[str]) -> Float[np.ndarray, "_ N"]:
    """Returns a column of every table, in the order of the kept items."""
    rows = [dict(zip(t[key].to_pylist(), t[column].to_pylist(), strict=True)) for t in tables]
    return np.array([[row[item] for item in kept] for row in rows], dtype=np.float64)


def _common(items: Iterable[Sequence[str]]) -> list[str]:
    """Returns the items common to all sequences, sorted."""
    sets = [set(some) for some in items]
    return sorted(set.intersection(*sets)) if sets else []
