"""Time, device-hours and cost of the stages, and the losses in each stage of the schedule."""

import dataclasses
import math
import re

import pytest

from profuser.report.facts import StageFact
from profuser.report.page import render_page
from profuser.report.pictures import pictures
from profuser.report.tables.loss import losses_alt, stage_loss_lines, stages
from profuser.report.tables.pipeline import cost_words, flow, format_duration, stage_lines, total_line
from tests.report import made_up


def held(name: str, hours: float, price: float | None = 2.0, **changes) -> StageFact:
    whole = {"seconds": 3600.0, "device_seconds": 3600 * hours, "price_per_device_hour": price}
    return StageFact(name, "finished", **(whole | changes))


def notes(*stages: StageFact, currency: str = "EUR") -> str:
    return " ".join(cost_words(made_up.facts(stages=stages, recipe={"plan": {"currency": currency}})))


def test_money_is_device_hours_times_the_price():
    facts = made_up.facts(stages=(held("collect/a", 1.5), held("collect/b", 0.25, 4.0), held("prepare/train", 0)))
    assert [line.money for line in stage_lines(facts)] == ["3.00", "1.00", ""]
    assert [line.device_hours for line in stage_lines(facts)] == ["1.50", "0.25", ""]
    total = total_line(facts)
    assert (total.time, total.device_hours, total.money) == ("3.0 h", "1.75", "4.00")


def test_small_costs_are_not_rounded_to_nothing():
    facts = made_up.facts(stages=(held("collect/a", 0.0069), held("fuse", 0.11)))
    assert [line.device_hours for line in stage_lines(facts)] == ["0.0069", "0.1100"]


def test_stages_without_a_price_are_reported():
    assert "names no price (plan.price_per_device_hour)" in notes(held("collect/a", 1, None))
    partly = notes(held("collect/a", 1), held("fuse", 2, None))
    assert "price of 2 EUR each" in partly
    assert "names no price for fuse" in partly
    assert "price" not in notes(StageFact("prepare/train", "finished", 3.0))


def test_stages_reused_from_another_run_cost_nothing():
    stages = (held("collect/a", 1, reused_from="first"), held("fuse", 2))
    facts = made_up.facts(stages=stages)
    total = total_line(facts)
    assert (total.name, total.time, total.device_hours) == ("all of this run", "60.0 min", "2.00")
    assert stage_lines(facts)[0].note == "taken from run first"
    assert "taken from run first are not in the totals" in notes(*stages)
    assert [step.reused for step in flow(facts)] == [True, False]


def test_the_verdicts_of_a_generative_judge_are_stated_with_their_cost():
    counts = {
        "rows": 20,
        "answers": 40,
        "verdicts": 38,
        "without_verdict": 2,
        "verdicts/measured": 38,
        "verdicts/mass": 34.2,
    }
    counts |= {"pairs_compared": 19, "ties": 7, "orders_disagree": 5, "pairs/first": 24.7}
    metrics = {"mass_on_verdicts": 0.9, "first_preferred": 0.65}
    judged = StageFact("rewards/referee", "finished", 60.0, counts, metrics, token_money=0.25)
    facts = made_up.facts(stages=(judged, held("rewards/number", 0)))
    page = " ".join(render_page(facts, {}).split())
    assert (
        "rewards/referee: 38 verdicts; 90.0 % of the probability is on possible verdicts; 7 of 19 pairs are ties, 5 of them "
        "because the orders disagree; the answer shown first is preferred with 65.0 % (50 % is no position bias)."
        in page
    )
    assert "rewards/number:" not in page
    assert "without verdict 2" in stage_lines(facts)[0].also
    assert "counts (EUR): rewards/referee 0.25" in notes(judged)


def test_the_flow_adds_up_the_parts_of_a_stage():
    facts = made_up.measured()
    steps = {step.name: step for step in flow(facts)}
    assert list(steps) == ["prepare", "collect", "rewards", "select", "fuse", "evaluate"]
    assert steps["collect"].parts == "3 sources"
    assert "1,800 rows each" in steps["collect"].phrases
    assert "120,963 response tokens" in steps["collect"].phrases
    assert "3,540 examples" in steps["select"].phrases
    assert sum(step.share for step in steps.values()) == pytest.approx(1)


@pytest.mark.parametrize(("seconds", "text"), [(0.94, "0.9 s"), (119, "119.0 s"), (258, "4.3 min"), (9000, "2.5 h")])
def test_a_duration_is_shown_in_a_suitable_unit(seconds, text):
    assert format_duration(seconds) == text


def test_the_page_shows_costs_only_if_there_is_a_price():
    priced, unpriced = render_page(made_up.measured(), {}), render_page(made_up.facts(), {})
    assert "cost, EUR" in priced
    assert "cost, " not in unpriced
    assert "Time and cost" in unpriced


def test_losses_are_shown_from_the_first_to_the_last_updates_of_each_stage():
    history = [
        {"step": step, "stage": int(step >= 40), "weight_training": float(step >= 40), "weight_inference": 1.0}
        | {"ce_inference_nats": 2.0 - 0.01 * step, "kl_inference_nats": math.nan}
        | ({"heldout_bits_per_byte_training": step / 100} if step % 20 == 19 else {})
        for step in range(100)
    ]
    assert [len(updates) for updates in stages(history)] == [40, 60]
    lines = stage_loss_lines(made_up.facts(history=history))
    assert [(line.stage, line.updates, line.mode) for line in lines] == [
        (1, "0 to 39", "training"),
        (1, "0 to 39", "inference"),
        (2, "40 to 99", "training"),
        (2, "40 to 99", "inference"),
    ]
    assert [line.weight for line in lines] == ["0", "1", "1", "1"]
    assert (lines[0].ce, lines[0].heldout, lines[2].heldout) == ("", "0.390", "0.990")
    assert lines[1].ce == "1.995 to 1.615"
    assert lines[1].kl == ""
    assert "stage 2, updates 40 to 99, training mode: weight 1, held out 0.990" in losses_alt(
        made_up.facts(history=history)
    )


def test_a_stage_with_pairs_has_a_line_of_its_own_and_the_page_shows_it():
    history = [
        {"step": step, "stage": 0, "weight_training": 1.0, "weight_inference": 0.0, "ce_training_nats": 1.0}
        | {"weight_preference": 0.5, "preference_nats": 0.7 - step / 100, "preference_accuracy": 0.5 + step / 50}
        for step in range(20)
    ]
    facts = made_up.facts(history=history)
    line = stage_loss_lines(facts)[-1]
    assert (line.mode, line.weight, line.ce, line.accuracy) == ("preference", "0.5", "0.700 to 0.510", "50 to 88 %")
    assert "preference mode: weight 0.5, loss 0.700 to 0.510, pairs in the right order 50 to 88 %" in losses_alt(facts)
    page = render_page(facts, pictures(facts))
    assert "per pair; in the right order: 50 to 88 %" in page
    assert "the loss of the pairs" in page
    assert "the loss of the pairs" not in render_page(made_up.facts(), {})


def test_the_page_shows_the_recipe_without_defaults_first():
    facts = dataclasses.replace(made_up.facts(), settings={"name": "demo", "fuse": {"beta": 0.3}})
    page = render_page(facts, {})
    first, second = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert "beta: 0.3" in first
    assert "storage" not in first
    assert "storage" in second
