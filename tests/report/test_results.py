"""Differences with their intervals, benchmarks and judged win rates, from item tables to the page."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from profuser.evaluation.heldout import Score, score
from profuser.evaluation.statistics import SIGN_TEST, Difference, paired_difference
from profuser.report.comparisons import benchmark_comparisons, heldout_comparisons, preference
from profuser.report.facts import ModelDifference, RunFacts, StageFact
from profuser.report.headline import headline
from profuser.report.measures import BITS_PER_BYTE
from profuser.report.model_card import model_card
from profuser.report.page import render_page
from profuser.report.tables.results import benchmark_lines, benchmark_table, judged_table, score_lines
from tests.report import made_up


def found(
    comparisons: list[ModelDifference], measure: str, model: str = "target", category: str = "all"
) -> ModelDifference:
    (one,) = [c for c in comparisons if (c.measure, c.model, c.category) == (measure, model, category)]
    return one


def with_difference(value: float, low: float, high: float, verdict: str, fused: Score) -> RunFacts:
    own = [
        ModelDifference(name, "all", "target", Difference(value, low, high, 0.5, 200, SIGN_TEST), 0.5, verdict)
        for name in ("bits per byte", "exact match")
    ]
    return made_up.facts(scores={"all": {"target": Score(200, 0.5, 0.5), "fused": fused}}, comparisons=own)


def section(page: str, name: str) -> str:
    text = page[page.index(f'<section id="{name}">') :].split("</section>")[0]
    return " ".join(re.sub("<[^>]+>", " ", text).split())


def test_differences_are_those_of_the_scores():
    tables = made_up.evaluate_tables()
    comparisons = heldout_comparisons(tables)
    assert {c.category for c in comparisons} == {"all", *made_up.SKILLS[:2]}
    for category in ("all", *made_up.SKILLS[:2]):
        ids = {r["row_id"] for r in tables["fused"].to_pylist() if category in ("all", r["category"])}
        fused = score(tables["fused"], ids)
        for model in ("target", "mpt", "neox"):
            other = score(tables[model], ids)
            bits = found(comparisons, "bits per byte", model, category).difference
            right = found(comparisons, "exact match", model, category).difference
            assert bits.value == pytest.approx(fused.bits_per_byte - other.bits_per_byte)
            assert right.value == pytest.approx(100 * (fused.exact_match - other.exact_match))
            assert bits.num_items == right.num_items == len(ids)
            assert bits.low < bits.value < bits.high < 0
            assert right.low <= right.value <= right.high


def test_rows_that_one_model_refused_are_left_out_for_all():
    tables = made_up.evaluate_tables()
    rows = tables["mpt"].to_pylist()
    rows[0] |= {"refused": "too long", "nats": None, "correct": None, "prediction": None}
    tables["mpt"] = tables["mpt"].from_pylist(rows, schema=tables["mpt"].schema)
    assert {c.difference.num_items for c in heldout_comparisons(tables) if c.category == "all"} == {59}
    assert heldout_comparisons({name: t for name, t in tables.items() if name != "fused"}) == []


def test_a_benchmark_is_compared_in_points_and_in_words():
    tables = made_up.benchmark_tables()
    comparisons = benchmark_comparisons(tables)
    clear, level = found(comparisons, "arc_challenge"), found(comparisons, "gsm8k")
    fused, target = (np.array(tables["arc_challenge"][model]["score"]) for model in ("fused", "target"))
    expected = paired_difference(fused, target)
    assert (clear.difference.low, clear.difference.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert (clear.verdict, level.verdict) == ("better", "within noise")
    assert not [c for c in comparisons if (c.measure, c.model) == ("gsm8k", "mpt")]


def test_a_difference_within_noise_is_not_called_better():
    noisy = headline(with_difference(-0.02, -0.06, 0.02, "within noise", Score(200, 0.48, 0.52)))
    assert {finding.verdict for finding in noisy.findings} == {"within noise"}
    assert noisy.title == "The fused model is within noise of the target before fusion"
    assert "fell to 0.480 from 0.500 (-0.020, 95 % interval -0.060 to +0.020)" in noisy.findings[0].text
    assert "no interval" not in noisy.notes[-1]
    assert "one seed" in noisy.notes[-1]
    lines = score_lines(with_difference(-0.02, -0.06, 0.02, "within noise", Score(200, 0.48, 0.52)), BITS_PER_BYTE)
    assert [line.better_model for line in lines] == [None]


def test_the_headline_covers_benchmarks_and_judges():
    verdicts = {finding.text: finding.verdict for finding in headline(made_up.measured()).findings}
    assert verdicts["Benchmarks: better on arc_challenge; within noise on gsm8k."] == "better"
    (judges,) = [text for text in verdicts if text.startswith("The judges prefer")]
    assert "71.0 % of the rows at equal length (95 % interval 65.0 to 77.0" in judges
    assert verdicts[judges] == "better"


def test_a_win_rate_is_compared_with_one_half():
    for rates in made_up.judged().values():
        for rate in rates.values():
            gap = preference(rate.length_controlled)
            assert gap.value == pytest.approx(100 * rate.length_controlled.value - 50)
            even = rate.length_controlled.low <= 0.5
            assert gap.verdict(larger_is_better=True) == ("within noise" if even else "better")


def test_the_page_shows_every_benchmark_with_intervals_and_verdicts():
    facts = made_up.measured()
    page = render_page(facts, {})
    for name, scores in facts.benchmarks.items():
        for estimate in scores.values():
            interval = f"{estimate.value:.1f} {estimate.low:.1f} to {estimate.high:.1f}"
            assert interval in section(page, "benchmarks"), name
    assert "within noise" in section(page, "benchmarks")
    assert (
        "candid target (llama) 71.0 % 65.0 to 77.0 52.0 % 46.0 to 58.0 192 / 67 / 41 &lt; 0.001 72 / 38 within noise"
        in section(page, "judged")
    )
    assert "within noise" in section(page, "results")
    lines = {line.name: line for line in benchmark_lines(facts)}
    assert (lines["arc_challenge"].better_model, lines["gsm8k"].better_model) == ("fused", None)
    assert "mpt" not in lines["gsm8k"].cells


def test_the_page_breaks_win_rates_and_teachers_down_by_category():
    page = render_page(made_up.measured(), {})
    rate, even = "71.0 % 65.0 to 77.0", "52.0 % 46.0 to 58.0"
    for category, cell in {"all": rate, "facts": even, "units": rate}.items():
        assert f"{category} 300 {cell} {cell} {cell}" in section(page, "judged")
    wins = section(page, "wins")
    assert (
        "Training mode: share of the examples that each source teaches category examples llama (target) mpt neox"
        in wins
    )
    assert "facts 4 25.0 % 75.0 % 0.0 %" in wins
    assert "facts 9 0.0 % 0.0 % 100.0 %" in wins
    duels = section(page, "duels")
    assert "llama (target) beats mpt llama (target) beats neox mpt beats neox all 1,800 67.3 % 62.3 % 57.3 %" in duels
    assert "facts 8 43.8 % 43.8 % 43.8 %" in duels
    assert "facts 4 12.5 % 12.5 % 12.5 %" in duels
    assert "facts 8 37.5 % kappa +0.66 37.5 % kappa +0.45" in section(page, "judges")
    assert "facts 1,600 50.6 % abstains 1.9 % 77.0 % abstains 4.4 % 62.0 % abstains 6.9 %" in section(page, "judges")
    assert "facts 100 90.0 % 3.0 % 0.0 % 2.0 % 5.0 %" in section(page, "alignment")


def test_without_categories_there_is_no_table_of_them():
    page = render_page(made_up.measured(judged_by_category={}, taught={}, selection_by_category={}, aligned={}), {})
    assert "by category" not in page
    assert "share of the examples that each source teaches" not in page


def test_the_page_says_what_the_corpus_is_made_of_and_what_was_dropped():
    counts = {"rows": 9, "parts/a/rows": 5, "parts/a/left_out": 2, "parts/b/rows": 4, "unused_fields/hint": 3}
    counts |= {"contaminated/gsm8k": 1, "compared/gsm8k": 1319, "too_short/gsm8k": 2}
    dropped = {"row_id": "0123456789abcdef", "source_file": "x.jsonl", "source_line": 7, "found_in": "gsm8k"}
    facts = made_up.facts(
        stages=(StageFact("prepare/train", "finished", counts=counts),),
        contaminated=[dropped | {"phrase": "the words"}],
    )
    shown = section(render_page(facts, {}), "quarantine")
    for expected in (
        "parts: a 5 rows (2 left out by its share or max_rows), b 4 rows",
        "gsm8k: 1 training rows dropped that share 13 words (1,319 questions, 2 of them shorter than 13 words)",
        "fields not used: hint (3 rows)",
        "0123456789abcdef x.jsonl 7 gsm8k the words",
    ):
        assert expected in shown


@pytest.mark.parametrize(
    ("evaluate", "reason"),
    [({}, "the recipe names none"), ({"benchmarks": [{"name": "mmlu"}]}, "No benchmark is finished yet")],
)
def test_an_empty_section_states_the_reason(evaluate, reason):
    page = render_page(made_up.facts(recipe=made_up.recipe() | {"evaluate": evaluate}), {})
    assert reason in section(page, "benchmarks")
    assert "not judged" in section(page, "judged")


def test_the_page_names_each_failed_benchmark_with_its_model_and_the_reason():
    reason = "no room for <answers> of 200 tokens"
    page = render_page(made_up.measured(failures={"benchmarks/mpt/tasks/rivers": reason}), {})
    shown = section(page, "benchmarks").replace("&lt;", "<").replace("&gt;", ">")
    assert f"tasks/rivers of mpt was not measured: {reason}" in shown
    assert "was not measured" not in section(render_page(made_up.measured(), {}), "benchmarks")


def test_benchmarks_and_win_rates_fit_in_100_columns():
    out = io.StringIO()
    for table in (benchmark_table(made_up.measured()), judged_table(made_up.measured())):
        Console(file=out, width=100).print(table)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    for part in ("arc_challenge", "within noise", "65.0 to 77.0", "192 / 67 / 41"):
        assert part in text


def test_the_card_has_intervals_if_the_report_does():
    card = model_card(made_up.measured())
    assert "| gsm8k | 200 |" in card
    assert "within noise" in card
    assert "no interval" not in card
    assert "no interval" in model_card(made_up.facts())
