"""Tables by category and by verifier, from the artifacts of an ablation to the terminal, Markdown, CSV and JSON."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from profuser.ablation import breakdown
from profuser.ablation.answers import answer_win_rates
from profuser.ablation.arms import find_arms, plan_ablation
from profuser.ablation.plot import ablation_plot
from profuser.ablation.results import ORACLE, TARGET_TITLE, gather_results
from profuser.ablation.table import Provenance, as_json, flat_rows, markdown, notes, render
from profuser.evaluation.statistics import win_rate
from profuser.recipe.verifiers import (
    CallableConfig,
    ChrfConfig,
    CodeTestsConfig,
    ExactMatchConfig,
    LastNumberConfig,
    RougeLConfig,
)
from profuser.run.stages import FUSED, TARGET
from ray_jobs.cli.options import RECIPES

NUM_ROWS = 60
REWARDS = "rewards=[{kind: last_number, name: number, categories: [math]}, {kind: chrf, name: likeness}]"
MADE = Provenance(1.0, 1.0, 0.5, (), "a machine")


def category(row, names):
    return names[row % len(names)] if names else None


def answer(row, right):
    return f"The answer is {row if right else row + 1000}."


def write(artifact, records):
    artifact.write_shard(0, pa.Table.from_pylist(records, schema=artifact.schema), {"rows": len(records)})
    artifact.finish([{"rows": len(records)}], 1.0)


def write_scores(artifact, names, bits, right):
    """Writes made-up scores: `bits` of the row's category, and a right answer to the first `right` rows."""
    write(
        artifact,
        [
            {
                "row_id": f"{row:03d}",
                "category": category(row, names),
                "refused": None,
                "prediction": answer(row, row < right),
                "correct": row < right,
                "nats": None if bits is None else (bits + row % max(len(names), 1)) * np.log(2),
                "response_bytes": 10,
            }
            for row in range(NUM_ROWS)
        ],
    )


def make(storage, names=("math", "prose"), rewards=REWARDS, mpt_bits: float | None = 5.0):
    """Returns the results of two arms of two seeds with these categories and rewards."""
    settings = [f"storage={storage}", rewards]
    ablation = plan_ablation("demo", settings, find_arms(["sft-gt", "progressive"], RECIPES), 2, RECIPES)
    place = {"messages": [{"role": "user", "content": "?"}], "source_file": "rows.jsonl", "source_line": 1}
    rows = range(NUM_ROWS)
    heldout = [
        {"row_id": f"{r:03d}", "response": answer(r, True), "category": category(r, names), **place} for r in rows
    ]
    for name, bits, right in ((TARGET, 6.0, 20), ("mpt", mpt_bits, 0), ("neox", 5.5, 30)):
        write_scores(ablation.shared[f"evaluate/{name}"], names, bits, right)
    for stage, artifact in ablation.shared.items():
        if stage == "prepare/heldout":
            write(artifact, heldout)
        elif not stage.startswith("evaluate"):
            artifact.finish([], 1.0)
    for each in ablation.runs:
        better = each.arm.name == "progressive"
        each.parts["fuse"].folder.write_bytes("metrics.jsonl", b'{"sequence_tokens": 1000}\n')
        each.parts["fuse"].finish([], 1.0)
        write_scores(each.parts[f"evaluate/{FUSED}"], names, 3.0 if better else 4.0 + each.seed, 50 if better else 20)
    return gather_results(ablation)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make(tmp_path_factory.mktemp("storage"))


def printed(tables, width=80):
    out = io.StringIO()
    for table in tables:
        Console(file=out, width=width).print(table)
    return out.getvalue()


def test_both_metrics_are_broken_down_by_category(results):
    rows = {row["name"]: row for row in flat_rows(results)}
    assert rows["progressive"]["bits_per_byte_in_math"] == pytest.approx(0.3)
    assert rows["progressive"]["bits_per_byte_in_prose"] == pytest.approx(0.4)
    assert rows["sft-gt"]["bits_per_byte_in_prose"] == pytest.approx((0.5 + 0.6) / 2)
    assert rows[TARGET_TITLE]["exact_match_in_math"] == pytest.approx(100 / 3)
    for key in ("bits_per_byte", "exact_match"):
        parts = [rows[ORACLE][f"{key}_in_{name}"] for name in ("math", "prose")]
        assert np.mean(parts) == pytest.approx(rows[ORACLE][key])
    assert as_json("x", results, MADE)["categories"] == {"math": 30, "prose": 30}


def test_answers_are_compared_with_the_targets_before_by_each_verifier(results):
    # Of 60 rows the target answers the first 20, the arm the first 50; a verifier judges its categories alone.
    number, likeness = (results.answers.rates[name, "progressive"] for name in ("number", "likeness"))
    assert (number.num_items, likeness.num_items) == (30, 60)
    assert number.value == likeness.value == pytest.approx(0.75)
    assert 0.5 < likeness.low < 0.75 < likeness.high < 1
    same = results.answers.rates["number", "sft-gt"]
    assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)
    assert {name for _, name in results.answers.rates} == {"mpt", "neox", "progressive", "sft-gt"}
    once = results.answers.rates["number", "neox"]
    assert once == win_rate([0.5] * 10 + [1.0] * 5 + [0.5] * 15)[0]
    row = next(row for row in flat_rows(results) if row["name"] == "progressive")
    assert (row["win_rate_number"], row["win_rate_number_rows"]) == (pytest.approx(75.0), 30)


ROWS = [
    {"row_id": f"{n}", "response": text, "category": kind}
    for n, (text, kind) in enumerate([("1", "math"), ("2", "math"), ("3", "math"), ("four", "prose"), ("?!", "prose")])
]


def rates(verifier, mine, other):
    found = answer_win_rates([verifier], ROWS, {"before": [other], "arm": [mine]}, "before")
    return found.rates.get((verifier.name, "arm"))


def test_blank_answers_lose_and_rows_that_are_not_judged_do_not_count():
    number = LastNumberConfig(kind="last_number", name="v", categories=("math",))
    mine, other = ["1", " ", None, "4", "5"], ["2", "0", "", "x", "x"]
    assert rates(number, mine, other) == win_rate([1.0, 0.0, 0.5])[0]
    assert rates(number.model_copy(update={"categories": ("code",)}), mine, other) is None
    # ROUGE cannot judge a truth without words; a blank answer to it counts no more.
    rouge = RougeLConfig(kind="rouge_l", name="v", categories=("prose",))
    assert rates(rouge, ["", "", "", "four", "a"], ["", "", "", "five", ""]) == win_rate([1.0])[0]


@pytest.mark.parametrize("kind", [LastNumberConfig, ExactMatchConfig, ChrfConfig, RougeLConfig])
def test_swapping_both_sides_gives_one_minus_the_rate(kind):
    verifier = kind(kind=kind.model_fields["kind"].annotation.__args__[0], name="v")
    mine, other = ["1", "2", "x", "four", "?"], ["0", "2", "3", "for", None]
    there, back = rates(verifier, mine, other), rates(verifier, other, mine)
    assert there
    assert back
    assert there.value == pytest.approx(1 - back.value)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))
    assert (same := rates(verifier, mine, mine))
    assert same.value == 0.5


def test_seeds_of_an_arm_count_together():
    exact = ExactMatchConfig(kind="exact_match", name="v")
    truths, wrong = [row["response"] for row in ROWS], ["no"] * len(ROWS)
    found = answer_win_rates([exact], ROWS, {"before": [wrong], "arm": [truths, wrong]}, "before").rates["v", "arm"]
    assert found.value == pytest.approx(0.75)
    assert found.low < 0.75 < found.high
    alone = answer_win_rates([exact], ROWS, {"before": [wrong], "arm": [truths]}, "before").rates["v", "arm"]
    assert alone == win_rate([1.0] * 5)[0]


def test_there_are_no_such_tables_with_one_category_and_reward_models_alone(tmp_path):
    found = make(tmp_path, ("math",), "rewards=[{kind: reward_model, name: brisk, model: lab://rewards/brisk}]")
    assert (found.categories, found.answers.rates, breakdown.breakdowns(found)) == ({}, {}, [])
    assert len(render(found)) == 2
    assert not any("category" in note or "Win rate" in note for note in notes(found))
    assert "category" not in markdown("x", found, MADE)


def test_a_verifier_that_executes_answers_or_fails_is_left_out_with_the_reason(results):
    code = CodeTestsConfig(kind="code_tests", name="code")
    gone = CallableConfig(kind="callable", name="gone", path="no_such_module:score")
    texts = ["1"] * len(ROWS)
    exact = ExactMatchConfig(kind="exact_match", name="v")
    found = answer_win_rates([code, gone, exact], ROWS, {"before": [texts], "arm": [texts]}, "before")
    assert found.rates.keys() == {("v", "arm")}
    assert found.left_out.keys() == {"code", "gone"}
    assert "no_such_module" in found.left_out["gone"]
    shown = notes(replace(results, answers=found))
    assert "No win rate by code: it executes the answers, which only its own stage does." in shown


def test_a_source_that_cannot_teacher_force_has_no_bits_per_byte(tmp_path):
    found = make(tmp_path, mpt_bits=None)
    text = markdown("x", found, MADE)
    assert "| mpt | - | - | - | - | - | - | - |" in text
    rows = {row["name"]: row for row in flat_rows(found)}
    assert rows[ORACLE]["bits_per_byte"] == pytest.approx(rows["neox"]["bits_per_byte"])
    assert rows["mpt"]["exact_match"] == 0.0
    assert len(render(found)) == 5
    assert len(ablation_plot(found).axes) == 2


def test_rows_without_a_category_are_in_none(tmp_path):
    assert make(tmp_path, ()).categories == {}


@pytest.mark.parametrize("num_categories", [2, 3, 11])
def test_the_tables_fit_in_80_columns_with_whole_names(tmp_path, num_categories):
    names = [f"category-{number} of arithmetic" for number in range(num_categories)]
    verifiers = ", ".join(f"{{kind: chrf, name: likeness-{number}}}" for number in range(num_categories))
    found = make(tmp_path, names, f"rewards=[{verifiers}]")
    text = printed(breakdown.render(found))
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    wanted = {f"category-{n}" for n in range(num_categories)} | {f"likeness-{n}" for n in range(num_categories)}
    assert wanted <= set(re.findall(r"[\w-]+", text.replace("-\n", "-"))) | _broken(text, wanted)
    assert text.count("[") == 4 * num_categories
    page = markdown("x", found, MADE)
    assert all(f"{name} (n=" in page for name in names)
    assert json.loads(json.dumps(as_json("x", found, MADE)))["rows"][0]["bits_per_byte_in_category-0 of arithmetic"]


def _broken(text, wanted):
    """Returns the names of which both halves, broken at the hyphen, are printed."""
    words = set(re.findall(r"[\w-]+", text))
    return {name for name in wanted if {name.split("-")[0] + "-", name.split("-")[1]} <= words}
