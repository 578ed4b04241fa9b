"""A fusion on a cluster that starts with only a head: Ray's autoscaler adds nodes (here processes) and removes them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.harness.node_history import Sample, bill, stage_times

PROJECT = Path(__file__).parents[2]
RECIPE = PROJECT / "cluster" / "autoscaling.yaml"
GROUPS = ("cpu", "engines", "rewards", "train")
NUM_ROWS, NUM_HELDOUT = 120, 12


@pytest.fixture
def recipe(tmp_path):
    """Returns the shipped recipe with two sources, a verifier instead of reward models, and few rows."""
    shipped = yaml.safe_load(RECIPE.read_text())
    pool = next(reward["pool"] for reward in shipped["rewards"])
    engine = {"kind": "transformers"}  # starts faster; the test is about nodes
    changed = {
        "base": str(RECIPE),
        "name": "tiny",
        "corpus": {"max_rows": NUM_ROWS, "heldout_rows": NUM_HELDOUT, "rows_per_shard": 12},
        "sources": [source | {"engine": source.get("engine", {}) | engine} for source in shipped["sources"][:2]],
        "rewards": [{"kind": "exact_match", "name": "exact", "accept_above": None, "pool": pool}],
        "fuse": {"duration": {"kind": "steps", "value": 8}, "batch_tokens": 1024},
        "evaluate": {"judged": False},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(changed))
    return file


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_are_added_for_each_stage_and_removed_when_it_ends(recipe, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "cluster.autoscaling", str(recipe), "--output", str(output), "--idle-seconds", "5"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((output / "tiny" / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert summary["stages"]["collect/mpt"]["counts"]["rows"] == NUM_ROWS
    with (output / "nodes.csv").open() as file:
        history = [
            {**row, **{group: int(row[group]) for group in GROUPS}, "stage": row["stages"].split("/")[0]}
            for row in csv.DictReader(file)
        ]

    def most(group, stages):
        return max(row[group] for row in history if row["stage"] in stages)

    assert all(history[0][group] == history[-1][group] == 0 for group in GROUPS)
    assert most("engines", ("collect",)) == 2
    assert [most(group, ("collect",)) for group in ("cpu", "rewards", "train")] == [0, 0, 0]
    assert most("rewards", ("rewards",)) == 1
    assert most("cpu", ("select",)) == 1
    assert most("train", ("prepare", "collect", "rewards", "select")) == 0
    assert most("train", ("fuse",)) == 1
    assert [row for row in history if row["stage"] == "fuse"][-1]["engines"] == 0
    assert most("engines", ("evaluate",)) == 1
    assert (output / "nodes.png").stat().st_size > 10_000
    costs = json.loads((output / "bill.json").read_text())["groups"]
    assert {each["group"]: each["most_nodes"] for each in costs} == {
        "head": 1,
        "cpu": 1,
        "engines": 2,
        "rewards": 1,
        "train": 1,
    }
    assert all(0 < each["cost"] < each["fixed_cost"] for each in costs if each["group"] != "head")


HISTORY = [
    Sample(0.0, {"engines": 0, "train": 0}, ()),
    Sample(10.0, {"engines": 2, "train": 0}, ("collect/a",)),
    Sample(30.0, {"engines": 1, "train": 0}, ("collect/b",)),
    Sample(40.0, {"engines": 0, "train": 1}, ("fuse",)),
    Sample(100.0, {"engines": 0, "train": 0}, ()),
]


def test_autoscaled_cost_counts_node_seconds_and_fixed_cost_the_peak_for_the_whole_time():
    head, engines, train = bill(HISTORY, 90.0, {"head": 1.0, "engines": 36.0, "train": 360.0})
    assert (engines.most_nodes, engines.node_seconds, engines.fixed_node_seconds) == (2, 50.0, 180.0)
    assert (engines.cost, engines.fixed_cost) == pytest.approx((0.5, 1.8))
    assert (train.node_seconds, train.cost, train.fixed_cost) == pytest.approx((60.0, 6.0, 9.0))
    assert head.node_seconds == head.fixed_node_seconds == 90.0


def test_the_plot_merges_the_parts_of_a_stage():
    assert stage_times(HISTORY) == {"collect": (10.0, 40.0), "fuse": (40.0, 100.0)}


@pytest.mark.parametrize("wrong", ["train", "train=much", "train=-1", "gpu=3"])
def test_an_invalid_price_is_reported_in_one_line(wrong):
    command = [sys.executable, "-m", "cluster.autoscaling", "--price", wrong]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"profuser: --price {wrong}: expected GROUP=PRICE")
    assert done.stderr.count("\n") == 1
