"""Implements `profuser compare`: results of several runs, which differences exceed noise, and how the recipes differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from profuser.config import flatten, identity
from profuser.evaluation.comparison import (
    BITS_PER_BYTE,
    Contrast,
    MetricScores,
    benchmark_metrics,
    contrasts,
    heldout_metrics,
    seed_groups,
)
from profuser.evaluation.judged import JudgedWinRate
from profuser.evaluation.statistics import Difference, Estimate
from profuser.report.tables.table import name_cell, new_table
from profuser.run.finding import find_run
from profuser.run.fusion_run import FusionRun
from profuser.run.results import MAJORITY, judged_win_rates, read_benchmarks
from profuser.run.stages import FUSED, TARGET
from ray_jobs.runtime.progress import console, print_line

NOTE = (
    "p: McNemar's exact test where single runs are right or wrong on every item, else Student's t (sign flips where fewer than 25 "
    "items differ); adjusted by Holm over the comparisons of a metric.\n"
    "within noise: the interval includes 0, or p is 0.05 or more."
)


@dataclass(frozen=True)
class RunComparison:
    """Results of several runs on the metrics and items that they share."""

    runs: Mapping[str, FusionRun]
    groups: Mapping[str, Sequence[str]]
    """Names of the runs of each arm; without grouping, every run is its own arm."""
    metrics: Sequence[MetricScores]
    contrasts: Sequence[Contrast]
    judged: Mapping[str, JudgedWinRate]
    """Win rate of each run's fused model against its target."""

    @property
    def settings(self) -> dict[str, dict[str, str]]:
        """Settings that differ between the recipes: `{setting: {run: value}}`."""
        trees = {name: flatten(identity(run.recipe)) for name, run in self.runs.items()}
        keys = sorted({key for tree in trees.values() for key in tree} - {"name"})
        values = {key: {name: str(tree.get(key, "")) for name, tree in trees.items()} for key in keys}
        return {key: row for key, row in values.items() if len(set(row.values())) > 1}

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON-compatible data; shares are 0 to 1."""
        return {
            "groups": {name: list(names) for name, names in self.groups.items()},
            "metrics": {
                metric.name: {
                    name: asdict(found) | {"num_seeds": len(metric.values[name])}
                    for name, found in metric.estimates().items()
                }
                for metric in self.metrics
            },
            "contrasts": [asdict(contrast) | {"verdict": contrast.verdict} for contrast in self.contrasts],
            "judged": {name: asdict(rate) for name, rate in self.judged.items()},
            "settings": self.settings,
        }


def compare_runs(names: Sequence[str], storage: str, group_seeds: bool = False) -> RunComparison:
    """Compares target and fused model of each run, on the items that all of them were measured on.

    Every fused model is compared with its target and with the fused model of the first run.

    Args:
        names: names of the runs.
        storage: folder or URI where they are stored.
        group_seeds: pool the runs of one arm that differ only in `fuse.seed`.

    Raises:
        UserError: there is no such run, or two runs of an arm have the same seed.
    """
    runs = {name: find_run(name, storage) for name in names}
    groups = seed_groups({n: run.recipe for n, run in runs.items()}) if group_seeds else {name: [name] for name in runs}
    targets, models = _models(runs, groups)
    fused = [_fused(arm) for arm in groups]
    pairs = [(_fused(arm), targets[arm]) for arm in groups] + [(name, fused[0]) for name in fused[1:]]
    heldout = {name: [table for table, _ in seeds] for name, seeds in models.items()}
    # A run that is not evaluated yet must not reduce the items of the others.
    metrics = heldout_metrics({name: tables for name, tables in heldout.items() if tables})
    metrics += benchmark_metrics({name: [tables for _, tables in seeds] for name, seeds in models.items()})
    judged = {name: judged_win_rates(run).get(MAJORITY, {}).get(TARGET) for name, run in runs.items()}
    return RunComparison(
        runs,
        groups,
        metrics,
        [contrast for metric in metrics for contrast in contrasts(metric, pairs)],
        {name: rate for name, rate in judged.items() if rate is not None},
    )


Seed = tuple[pa.Table, Mapping[str, pa.Table]]
"""The evaluate table of one trained model, and its benchmarks'."""


def _models(
    runs: Mapping[str, FusionRun], groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], dict[str, list[Seed]]]:
    """Returns the name of each arm's target and the results of all models; a target shared by arms is named and read once."""
    marks = {arm: runs[names[0]].evaluate(TARGET).fingerprint for arm, names in groups.items()}
    firsts = {mark: arm for arm, mark in reversed(marks.items())}
    targets = {arm: TARGET if len(firsts) == 1 else f"{firsts[mark]}/{TARGET}" for arm, mark in marks.items()}
    models = {targets[arm]: _seeds([runs[groups[arm][0]]], TARGET) for arm in firsts.values()}
    models |= {_fused(arm): _seeds([runs[name] for name in names], FUSED) for arm, names in groups.items()}
    return targets, models


def _fused(arm: str) -> str:
    return f"{arm}/{FUSED}"


def _seeds(runs: Sequence[FusionRun], model: str) -> list[Seed]:
    """Returns a model's results in each run that has evaluated it."""
    out: list[Seed] = []
    for run in runs:
        artifact = run.evaluate(model)
        if artifact.manifest() is not None:
            tables = {name: tables[model] for name, tables in read_benchmarks(run).items() if model in tables}
            out.append((pa.concat_tables(artifact.tables()), tables))
    return out


def print_comparison(names: Sequence[str], storage: str, group_seeds: bool = False, as_json: bool = False) -> None:
    """Prints a comparison as tables, or as JSON."""
    found = compare_runs(names, storage, group_seeds)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    if not found.metrics:
        console.print("none of these runs has been evaluated yet, or they have no held-out row in common")
    for metric in found.metrics:
        console.print(_values_table(metric))
        console.print(_contrasts_table(metric, [c for c in found.contrasts if c.metric == metric.name]))
    if found.contrasts:
        print_line(NOTE)
    if found.judged:
        console.print(_judged_table(found.judged))
    if len(found.runs) > 1:
        _print_settings(found)


def _values_table(metric: MetricScores) -> Table:
    table = new_table(f"{_title(metric.name)}, {metric.num_items:,} items", "model")
    for column in ("seeds", _title(metric.name), "95 % interval"):
        table.add_column(column, justify="right")
    for name, found in metric.estimates().items():
        shown = _value(metric.name, found.value), Text(_interval(metric.name, found))
        table.add_row(name_cell(name), str(len(metric.values[name])), *shown)
    return table


def _contrasts_table(metric: MetricScores, found: Sequence[Contrast]) -> Table:
    table = new_table(f"differences in {_title(metric.name)}", "model")
    table.add_column("against", no_wrap=True)
    for column in ("difference", "95 % interval", "p"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for contrast in found:
        difference, p_value = contrast.difference, contrast.adjusted_p_value
        shown = _value(metric.name, difference.value, sign=True), Text(_interval(metric.name, difference))
        p_shown = "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
        table.add_row(name_cell(contrast.model), name_cell(contrast.baseline), *shown, p_shown, contrast.verdict)
    return table


def _judged_table(judged: Mapping[str, JudgedWinRate]) -> Table:
    table = new_table("judged win rate of the fused model against its target, majority vote of the rewards", "run")
    for column in ("win rate", "at equal length", "won / lost / tied"):
        table.add_column(column, justify="right")
    for name, rate in judged.items():
        shown = [
            Text(f"{_value('', found.value)} {_interval('', found)}") for found in (rate.raw, rate.length_controlled)
        ]
        table.add_row(name_cell(name), *shown, f"{rate.num_won:,} / {rate.num_lost:,} / {rate.num_ties:,}")
    return table


def _print_settings(found: RunComparison) -> None:
    table = new_table("settings that differ", "setting")
    for name in found.runs:
        table.add_column(Text(name), overflow="fold")
    for key, row in found.settings.items():
        table.add_row(Text(key), *(Text(value) for value in row.values()))
    console.print(table if found.settings else "the recipes do not differ")


def _title(metric: str) -> str:
    return metric.replace("_", " ")


def _value(metric: str, value: float, sign: bool = False) -> str:
    """Formats bits per byte, a share in percent, or a difference of shares in percentage points."""
    if metric == BITS_PER_BYTE:
        return f"{value:+.3f}" if sign else f"{value:.3f}"
    return f"{100 * value:+.1f} points" if sign else f"{100 * value:.1f} %"


def _interval(metric: str, found: Estimate | Difference) -> str:
    sign, scale, decimals = "+" if isinstance(found, Difference) else "", 100, 1
    if metric == BITS_PER_BYTE:
        scale, decimals = 1, 3
    return f"[{scale * found.low:{sign}.{decimals}f}, {scale * found.high:{sign}.{decimals}f}]"
