"""A short run under `python -m cluster.chaos`: it ends with the model of an undisturbed run, whatever was killed."""

import subprocess
import sys

import pytest

SETTINGS = {
    "corpus.max_rows": 400,
    "corpus.heldout_rows": 40,
    "corpus.rows_per_shard": 20,
    "fuse.duration.value": 40,
    "fuse.batch_tokens": 2048,
    "fuse.checkpoint_every_steps": 5,
    "evaluate.sources": "false",
}


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_run_with_a_kill_every_twenty_seconds_ends_with_the_same_model(tmp_path):
    command = [sys.executable, "-m", "cluster.chaos", "demo", "--kills", "5", "--output", str(tmp_path)]
    command += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 5 of 5: " in done.stdout
    assert done.stdout.endswith("the same model\n")


def test_the_output_of_an_earlier_chaos_run_is_refused(tmp_path):
    (tmp_path / "chaos" / "demo").mkdir(parents=True)
    (tmp_path / "chaos" / "demo" / "recipe.yaml").touch()
    command = [sys.executable, "-m", "cluster.chaos", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "delete it, or give another --output" in done.stderr
    assert done.stderr.count("\n") == 1
