"""Training and its benchmark run without Ray, vLLM and MLflow: on a machine with a GPU and little else."""

import json
import os
import subprocess
import sys

import pytest

FEW_THREADS = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*arguments):
    command = [sys.executable, "-m", "tests.bare_machine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=FEW_THREADS, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--sharded",)])
def test_examples_become_a_fused_model(options):
    found = json.loads(run("tests.training.whole_path", *options).splitlines()[-1])
    assert found["attention"] == "attention: by_example (examples grouped by length)"
    assert found["resumed_equals_whole"]
    assert found["losses"][-1] < found["losses"][0]
    assert found["changed_weights"] == found["weights"]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_a_tiny_form(tmp_path):
    printed = run("tests.benchmarks", "gpu", "--tiny", "--output", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == {}
    # Only benchmarks that need a GPU are left out, with their reason.
    assert {line.split(": ")[1] for line in found["left_out"]} <= {"liger"}
    assert all(
        line in " ".join(printed.split()) for line in ("update of 3B", "attention", "Transformers engine", "transport")
    )
    names = " ".join(row["name"] for row in found["rows"])
    for what in (
        "against products",
        "against dense",
        "plain SFT in this loop",
        "a bare loop",
        "SDPA with a mask",
        "one example a row",
    ):
        assert what in names
    assert all(row["value"] is not None and row["unit"] for row in found["rows"])
    assert {"commit", "device", "driver", "torch"} <= found.keys()
    assert set(found["profiles"]) == {"1.2B", "3B"}
    assert all(kernel["ms"] > 0 for kernel in found["profiles"]["3B"])


def test_the_required_value_of_a_figure_is_parsed():
    from tests.benchmarks.measure import Row

    def row(reach, value=2.0, baseline=1.0):
        return Row("", value, "", baseline, reach).reached

    assert row("<= 1.10 x") is False
    assert row(">= 2 x") is True
    assert row(">= 250,000", 250_000) is True
    assert row("< 5 s", 7.0) is False
    assert row("0.9 to 1.1 x", 1.0) is True
    assert row("0.9 to 1.1 x", 0.8) is False
    assert row(">= 0.45 x", baseline=None) is None
    assert row("") is None
