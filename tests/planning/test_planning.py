"""Extrapolation from a probe, compared with loops over rows, tables of Student's t, and draws from a corpus of known total."""

import math

import numpy as np
import pytest

from profuser.errors import ArtifactError
from profuser.planning.estimates import (
    STEP_TOKENS,
    Extrapolation,
    FileSize,
    Probe,
    SourceSetting,
    add_costs,
    collect_cost,
    disk_costs,
    estimate,
    extrapolate,
    signals_cost,
)
from profuser.planning.plan_file import PLAN, PlanError, ProbedPlan, StagePlan, compare, read_plan, write_plan
from profuser.storage.folder import Folder

NUM_ROWS = 50
PROMPT, TRAINING, INFERENCE = [10, 20, 30, 0], [5, 7, 9, 0], [8, 4, 12, 0]


def made_probe(**changes):
    """Four rows, the last of which was rejected."""
    whole = {
        "prompt_tokens": np.array(PROMPT),
        "training_tokens": np.array(TRAINING),
        "inference_tokens": np.array(INFERENCE),
        "seconds": 16.0,
        "with_topk": FileSize(1000.0, 40.0),
        "without_topk": FileSize(800.0, 10.0),
        "distributions": FileSize(500.0, 33.0),
        "signals_seconds": 6.0,
        "start_seconds": 90.0,
    }
    return Probe(**(whole | changes))


def made_setting(**changes):
    whole = {
        "num_shards": 5,
        "num_samples": 2,
        "num_actors": 3,
        "devices": 4.0,
        "price": 2.5,
        "share": 0.5,
        "lazy": False,
    }
    return SourceSetting(**(whole | changes))


def test_a_total_and_its_margin_match_a_calculation_by_hand():
    found = extrapolate(np.array([1.0, 2.0, 3.0, 4.0]), 10, once=100.0)
    assert found.value == 100 + 10 * 2.5
    spread = math.sqrt(sum((x - 2.5) ** 2 for x in (1, 2, 3, 4)) / 3)
    assert found.margin == pytest.approx(2.3534 * 10 * spread / 2 * math.sqrt(1 - 4 / 10), rel=3e-3)


def test_a_fully_probed_corpus_is_exact_and_a_single_row_gives_no_interval():
    whole = extrapolate(np.array([1.0, 5.0]), 2)
    assert (whole.value, whole.low, whole.high) == (6, 6, 6)
    assert whole.covers(6)
    assert not whole.covers(7)
    single = extrapolate(np.array([3.0]), 9)
    assert (single.value, single.low, single.high, single.covers(27)) == (27, None, None, None)


def test_no_total_is_below_zero():
    assert Extrapolation(3.0, 5.0).low == 0
    assert Extrapolation(3.0, 5.0).high == 8


@pytest.mark.parametrize("num_probed", [16, 64])
def test_the_interval_covers_the_true_total_about_as_often_as_stated(num_probed):
    draw = np.random.default_rng(0)
    rows = draw.lognormal(4.0, 0.5, 400)
    held = [extrapolate(rows[draw.choice(400, num_probed, replace=False)], 400).covers(rows.sum()) for _ in range(1500)]
    assert 0.86 < np.mean(held) < 0.94  # lengths are skewed: with few rows somewhat less than 0.9


def test_the_cost_of_collecting_equals_a_loop_over_rows():
    probe, setting = made_probe(), made_setting()
    found = estimate(collect_cost(probe, setting), NUM_ROWS)
    tokens = [3 * p + t + i for p, t, i in zip(PROMPT, TRAINING, INFERENCE, strict=True)]
    busy = sum(16.0 * mine / sum(tokens) for mine in tokens) / 4 * NUM_ROWS  # seconds of one actor
    assert found["prompt_tokens"].value == pytest.approx(sum(PROMPT) / 4 * NUM_ROWS)
    assert found["training_tokens"].value == pytest.approx(sum(TRAINING) / 4 * NUM_ROWS)
    assert found["inference_tokens"].value == pytest.approx(sum(INFERENCE) / 4 * NUM_ROWS)
    assert found["seconds"].value == pytest.approx(90 + busy / 3)
    assert found["device_hours"].value == pytest.approx(4 * (3 * 90 + busy) / 3600)
    assert found["money"].value == pytest.approx(2.5 * 4 * (3 * 90 + busy) / 3600)
    assert found["disk_bytes"].value == pytest.approx(5 * 1000 + 40 * (21 + 24) / 4 * NUM_ROWS)
    assert "money" not in estimate(collect_cost(probe, made_setting(price=None)), NUM_ROWS)


def test_reading_the_targets_answers_costs_an_answer_more_per_row():
    one, both = (estimate(signals_cost(made_probe(), made_setting(own_share=x)), NUM_ROWS) for x in (0.0, 1.0))
    probe, setting = made_probe(), made_setting()
    answer = probe.inference_tokens.sum() / setting.num_samples
    work = (2 * probe.prompt_tokens + probe.training_tokens).sum() + answer
    more = (probe.prompt_tokens.sum() + answer) / work
    hours = "device_hours"
    start = signals_cost(probe, setting).once[hours]
    assert both[hours].value - one[hours].value == pytest.approx((one[hours].value - start) / setting.share * more)
    assert both["disk_bytes"].value > one["disk_bytes"].value


def test_lazy_signals_cost_their_share_of_one_answer_per_row():
    found = estimate(signals_cost(made_probe(), made_setting()), NUM_ROWS)
    busy = 0.5 * 6.0 / 4 * NUM_ROWS
    assert found["seconds"].value == pytest.approx(90 + busy / 3)
    assert found["disk_bytes"].value == pytest.approx(5 * 500 + 0.5 * 33 * (21 + 24 / 2) / 4 * NUM_ROWS)
    nothing = estimate(signals_cost(made_probe(), made_setting(share=0.0)), NUM_ROWS)
    assert nothing["disk_bytes"].value == 5 * 500


def test_next_steps_cost_the_tokens_that_they_read():
    found = estimate(signals_cost(made_probe(), made_setting(steps_per_token=0.2)), NUM_ROWS)
    without = estimate(signals_cost(made_probe(), made_setting()), NUM_ROWS)
    response, prompt = 21 + 24 / 2, 60
    more = 0.5 * 6.0 / 4 * NUM_ROWS * 0.2 * STEP_TOKENS * response / (2 * prompt + response)
    assert found["seconds"].value - without["seconds"].value == pytest.approx(more / 3)
    assert found["disk_bytes"].value - without["disk_bytes"].value == pytest.approx(
        0.5 * 33 * 0.2 * response / 4 * NUM_ROWS
    )


def test_planned_disk_use_is_the_sum_over_its_stages():
    probe = made_probe()
    for kind, costs in (("eager", [collect_cost]), ("lazy", [collect_cost, signals_cost])):
        setting = made_setting(lazy=kind == "lazy", steps_per_token=0.1)
        stages = estimate(add_costs([cost(probe, setting) for cost in costs]), NUM_ROWS)
        found = estimate(disk_costs(probe, setting)[kind], NUM_ROWS)
        assert found["disk_bytes"].value == pytest.approx(stages["disk_bytes"].value)


def test_errors_of_sources_on_the_same_rows_add_up():
    cost = collect_cost(made_probe(), made_setting())
    one, two = estimate(cost, NUM_ROWS), estimate(add_costs([cost, cost]), NUM_ROWS)
    for name in one:
        assert two[name].value == pytest.approx(2 * one[name].value)
        assert two[name].margin == pytest.approx(2 * one[name].margin)


def test_a_file_size_is_the_line_through_two_files():
    assert FileSize.through((10, 1200), (110, 3200)) == FileSize(1000.0, 20.0)
    assert FileSize.through((50, 3000), (50, 3000)) == FileSize(0.0, 60.0)
    assert FileSize.through((1, 900), (2, 5000)) == FileSize(0.0, 4100.0)


def made_plan():
    quantities = {"training_tokens": Extrapolation(100.0, 8.0), "seconds": Extrapolation(50.0, None)}
    stage = StagePlan("collect/a", "f00d", quantities)
    disk = {"eager": Extrapolation(9.0, 1.0), "lazy": Extrapolation(4.0, 1.0)}
    return ProbedPlan(4, 50, 0, "USD", (stage,), quantities, disk, ("a note",))


def test_a_plan_survives_writing_and_reading(tmp_path):
    folder = Folder.at(tmp_path / "run")
    assert read_plan(folder) is None
    write_plan(folder, made_plan())
    assert read_plan(folder) == made_plan()


def test_a_plan_of_another_version_is_rejected(tmp_path):
    (tmp_path / PLAN).write_text('{"num_probed": 4}')
    with pytest.raises(ArtifactError, match=r"plan\.json: not a plan of this version \(num_rows\)"):
        read_plan(Folder.at(tmp_path))


def test_only_measured_quantities_are_compared():
    measured = {"collect/a": {"training_tokens": 90.0, "rows": 50.0}, "collect/b": {"training_tokens": 1.0}}
    (found,) = compare(made_plan(), measured)
    assert (found.stage, found.quantity, found.measured) == ("collect/a", "training_tokens", 90.0)
    assert found.error == pytest.approx(1 / 9)
    assert found.planned.covers(found.measured) is False
    assert math.isnan(PlanError("collect/a", "seconds", Extrapolation(1.0, 1.0), 0.0).error)
