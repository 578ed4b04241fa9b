"""Ablation on tiny models: all arms share one base run, a failing arm stops no other, a second call redoes nothing."""

import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from tests import tiny
from tests.benchmarks.arms import run as run_arms

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
RUNS = ("small.base", "small.sft-gt.s0", "small.beta-0.s0")
BASE_STAGES = {"prepare", "collect", "rewards", "select", "evaluate"}
TIMED = {"tokens_per_second", "model_tflops", "memory_gib"}
ARM_STAGES = {"fuse", "evaluate", "report"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    rows = [{"question": f"Sort {a} {n}.", "answer": f"The answer is {n}."} for n in range(12) for a in "abc"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = {"kind": "transformers", "dtype": "float32", "max_model_len": 96}
    target = {"model": tiny.llama(folder / "llama"), "engine": engine}
    content = {
        "name": "small",
        "storage": str(folder / "runs"),
        "corpus": {"path": str(folder / "data.jsonl"), "heldout_rows": 8, "rows_per_shard": 64},
        "sources": [
            {"name": "llama", **target},
            {"name": "neox", "model": tiny.neox(folder / "neox"), "engine": engine},
        ],
        "target": target,
        "collect": {"top_k": 4, "generation": {"max_tokens": 4}},
        "rewards": [{"kind": "exact_match", "name": "exact", "accept_above": None}],
        "fuse": {
            "duration": {"kind": "steps", "value": 2},
            "batch_tokens": 400,
            "max_tokens": 96,
            "validation_rows": 0,
            "workers": {"num_workers": 1},
        },
        "evaluate": {"generation": {"max_tokens": 4}},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


def ablate(recipe, *arguments):
    """Runs the command in a separate process, as users do: Ray fixes its token authentication once per process."""
    command = [sys.executable, "-m", "ray_jobs.cli", "lab", "ablate", "--recipe", str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def manifests(storage):
    """Returns when each artifact was finished, by its folder in the storage."""
    return {
        str(file.parent.relative_to(storage)): file.stat().st_mtime_ns
        for file in storage.glob("small.*/**/manifest.json")
    }


def table(storage):
    return json.loads((storage / "small.ablation" / "table.json").read_text())


def test_arms_share_one_base_a_failing_arm_stops_no_other_and_a_second_call_redoes_nothing(recipe):
    storage = recipe.parent / "runs"
    storage.mkdir()
    (storage / "small.reversed.s0").write_text("a file where the run's folder should be")
    done = ablate(recipe, "--arms", "sft-gt,reversed,beta-0", "--seeds", "1")
    assert done.returncode == 1, done.stderr
    assert "1 of 3 runs failed and are not in the table; small.reversed.s0: " in done.stderr

    made = manifests(storage)
    stages = {run: {name.split("/")[1] for name in made if name.startswith(f"{run}/")} for run in RUNS}
    assert stages == dict(zip(RUNS, (BASE_STAGES, ARM_STAGES, ARM_STAGES), strict=True))
    assert [name for name in made if "/collect/" in name] == ["small.base/collect/llama", "small.base/collect/neox"]
    assert {name for name in made if "/evaluate/" in name and "base" not in name} == {
        "small.sft-gt.s0/evaluate/fused",
        "small.beta-0.s0/evaluate/fused",
    }
    rows = {row["name"]: row for row in table(storage)["rows"]}
    assert rows.keys() == {"target before", "neox", "oracle per row", "sft-gt", "beta-0"}
    assert rows["sft-gt"]["updates"] == rows["beta-0"]["updates"] == 2
    assert rows["beta-0"]["bits_per_byte_less_sft-gt_verdict"] in ("better", "worse", "within noise", "not after Holm")
    assert table(storage)["num_rows"] == 8
    files = {file.name for file in (storage / "small.ablation").iterdir()}
    assert files == {"table.csv", "table.md", "table.json", "ablation.png"}

    done = ablate(recipe, "--arms", "sft-gt,beta-0", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert manifests(storage) == made
    assert "bits per byte, 8 held-out rows" in done.stdout


def test_arms_trained_without_ray_have_the_same_losses_and_rows(recipe, tmp_path):
    before = recipe.parent / "runs"
    after = shutil.copytree(before, tmp_path / "runs")
    for arm in RUNS[1:]:
        shutil.rmtree(after / arm)
    lines = []
    options = ["--recipe", str(recipe), "--set", f"storage={after}", "--seeds", "1", "--arms", "sft-gt,beta-0"]
    run_arms(lines.append, lines.append, options)
    for arm in RUNS[1:]:
        assert losses(after / arm) == losses(before / arm)
        mine, other = (evaluated(storage / arm) for storage in (after, before))
        assert mine == other
    done = ablate(recipe, "--arms", "sft-gt,beta-0", "--seeds", "1", "--set", f"storage={after}")
    assert done.returncode == 0, done.stderr
    assert scored(after) == scored(before)


def scored(storage):
    """Returns the table's rows without what they cost."""
    return [{key: value for key, value in row.items() if key != "device_hours"} for row in table(storage)["rows"]]


def losses(run):
    records = [json.loads(line) for line in (run / "fuse" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMED} for record in records]


def evaluated(run):
    return pq.read_table(run / "evaluate" / "fused" / "shard-00000.parquet").to_pylist()
