"""Notebooks read back an ablation as `profuser lab ablate` wrote it."""

import json

import numpy as np
import pytest

from profuser.ablation.reading import AblationTable, both_metrics_plot, differences_plot
from profuser.ablation.results import Measured, Results, compare_all
from profuser.ablation.table import Provenance, as_json
from profuser.report.measures import BITS_PER_BYTE, EXACT_MATCH, METRICS

NUM_ROWS = 40


def measured(name, kind, bits, correct, seeds=0, updates=10):
    """Returns made-up measurements, each seed slightly above the previous one."""
    draw = np.random.default_rng(len(name))
    num = max(seeds, 1)
    values = bits * 10 + 0.1 * draw.random((num, NUM_ROWS)) + 0.05 * np.arange(num)[:, None]
    trained = {"updates": (updates,) * seeds, "tokens": (1000,) * seeds, "about": f"what {name} is"} if seeds else {}
    return Measured(name, kind, values, draw.random((num, NUM_ROWS)) < correct, **trained)


@pytest.fixture(scope="module")
def results():
    rows = (
        measured("target before", "model", 0.9, 0.1),
        measured("sft-gt", "schedule", 0.5, 0.3, seeds=3),
        measured("progressive", "schedule", 0.4, 0.6, seeds=3),
        measured("k-5", "ablation", 0.42, 0.6, seeds=1),
        measured("longer", "schedule", 0.2, 0.9, seeds=2, updates=20),
    )
    num_bytes = np.full(NUM_ROWS, 10)
    return Results(rows, num_bytes, compare_all(rows, num_bytes))


@pytest.fixture
def table(results, tmp_path):
    made = Provenance(1.0, 1.0, 0.5, ("abc",), "a machine")
    (tmp_path / "table.json").write_text(json.dumps(as_json("x.ablation", results, made)))
    return AblationTable.read(tmp_path)


def test_all_arms_and_scores_are_read(table, results):
    assert table.references == ["sft-gt", "progressive"]
    assert [(row["arm"], row["seeds"]) for row in table.arms()] == [
        ("sft-gt", 3),
        ("progressive", 3),
        ("k-5", 1),
        ("longer", 2),
    ]
    for row, each in zip(table.scores(), results.measured, strict=True):
        for metric in METRICS:
            values = results.per_seed(each, metric)
            assert row[metric.title].startswith(metric.text(values.mean()))
            assert ("(" in row[metric.title]) == (len(values) > 1)


def test_differences_equal_the_tables_and_are_none_for_unmatched_arms(table, results):
    for metric in METRICS:
        rows = {row["arm"]: row for row in table.differences("sft-gt", metric)}
        assert "sft-gt" not in rows
        found = results.comparisons[metric.name, "progressive", "sft-gt"]
        assert rows["progressive"]["difference"] == pytest.approx(found.difference)
        assert rows["progressive"]["verdict"] == found.verdict
        assert rows["longer"]["difference"] is None
    assert {row["arm"] for row in table.differences("progressive", EXACT_MATCH)} >= {"sft-gt", "target before"}


def test_differences_are_drawn_for_matched_arms_only(table):
    figure = differences_plot(table, "sft-gt")
    for axes, metric in zip(figure.axes, METRICS, strict=True):
        known = [row for row in table.differences("sft-gt", metric) if row["difference"] is not None]
        assert [dot.get_offsets()[0][0] for dot in axes.collections] == pytest.approx(
            [row["difference"] for row in known]
        )
        assert [text.get_text() for text in axes.texts] == ["not step-matched"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_every_model_and_seed_is_in_the_plot_of_both_metrics(table):
    (axes,) = both_metrics_plot(table).axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(row["name"] for row in table.rows)
    dots = np.concatenate([dots.get_offsets() for dots in axes.collections])
    for row in table.rows:
        assert [row["bits_per_byte"], row["exact_match"]] in dots.tolist()
    assert len(dots) == len(table.rows) + 3 + 3 + 2
    assert BITS_PER_BYTE.name in axes.get_xlabel()
