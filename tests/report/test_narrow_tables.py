"""At 80 columns no table cuts a name or breaks it inside a word."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from profuser.report.facts import StageFact
from profuser.report.tables.results import benchmark_table, judged_table
from profuser.report.tables.selection import agreement_table, judges_table, win_rates_table
from profuser.report.tables.table import name_cell, render_scores, stage_table, who_wins_table
from ray_jobs.cli import status
from tests.report import made_up

WIDTH = 80
LONG_STAGES = ("benchmarks/target/arc_challenge", "benchmarks/smollm2-135m-instruct/truthfulqa_mc2")


def facts():
    found = made_up.measured()
    stages = tuple(StageFact(name, "finished", 812.3, {"rows": 1172, "tokens": 1_000_000}) for name in LONG_STAGES)
    (benchmark,) = (scores for name, scores in found.benchmarks.items() if name == "arc_challenge")
    return replace(found, stages=(*found.stages, *stages), benchmarks={**found.benchmarks, "truthfulqa_mc2": benchmark})


def printed(table):
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(table)
    return out.getvalue()


TABLES = {
    "scores": (
        lambda found: render_scores(found, WIDTH),
        lambda found: [*found.categories, *map(found.label, found.models)],
    ),
    "benchmarks": (benchmark_table, lambda found: [*found.benchmarks, *map(found.label, found.models)]),
    "judged": (judged_table, lambda found: [found.label(m) for m in found.models if m != "fused"]),
    "stages": (stage_table, lambda found: [stage.name for stage in found.stages]),
    "who wins": (who_wins_table, lambda found: map(found.source_label, found.sources)),
    "duels": (win_rates_table, lambda found: map(found.source_label, found.sources)),
    "judges": (judges_table, lambda found: [judge.name for judge in found.selection.judges]),
    "agreement": (agreement_table, lambda found: [judge.name for judge in found.selection.judges]),
}


@pytest.mark.parametrize("name", TABLES)
def test_names_are_whole_at_80_columns(name):
    found, (make, names) = facts(), TABLES[name]
    text = printed(make(found))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\u2026" not in text
    expected = {word for each in names(found) for word in re.findall(r"[A-Za-z0-9.]+", each)}
    assert expected <= set(re.findall(r"[A-Za-z0-9.]+", text))


@pytest.mark.parametrize("target", ["llama", "smollm2", "qwen2.5-0.5b"])
def test_intervals_of_scores_are_whole_at_80_columns(target):
    found = replace(facts(), source_is_target=target)
    text = printed(render_scores(found, WIDTH))
    assert "\u2026" not in text
    numbers = r"[-+]?[0-9]+\.[0-9]+"
    compared = 6  # those of the made-up run that vary
    assert len(re.findall(rf"\({numbers},", text)) == len(re.findall(rf"{numbers}\) ", text)) == compared


def test_the_state_of_a_run_shows_whole_names(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(status, "console", Console(file=out, width=WIDTH))
    stages = {name: {"state": "finished", "counts": {"rows": 1_000_000}, "seconds": 99_999.0} for name in LONG_STAGES}
    status.print_status({"run": "r", "state": "running", "stages": stages})
    assert "benchmarks/target/arc_challenge" in out.getvalue()
    assert "\u2026" not in out.getvalue()
    assert {"smollm2", "instruct", "truthfulqa", "mc2"} <= set(re.findall(r"[A-Za-z0-9]+", out.getvalue()))


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("mpt", 16, ["mpt"]),
        ("target (smollm)", 10, ["target", "(smollm)"]),
        ("benchmarks/target/arc_challenge", 20, ["benchmarks/target/", "arc_challenge"]),
        ("qwen2.5-0.5b-instruct", 12, ["qwen2.5-", "0.5b-", "instruct"]),
        ("averylongnamewithoutanyseparator", 10, ["averylongnamewithoutanyseparator"]),
        ("a--b", 2, ["a-", "-b"]),
    ],
)
def test_a_long_name_is_broken_only_after_separators(name, width, lines):
    assert name_cell(name, width).plain.split("\n") == lines
