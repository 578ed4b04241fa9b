"""Rounds on a cluster: the target answers again between them, and whatever is killed inside them, the bits are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from ray_jobs.pipeline.pipeline import run_pipeline
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
TIMED = {"tokens_per_second", "model_tflops", "memory_gib"}
NUM_STEPS = 12
FUSE = {
    "rounds": 2,
    "schedule": [
        {"until": 0.25, "inference": 1.0, "training": 0.0},
        {"until": 1.0, "inference": 0.0, "training": 0.1, "on_policy": 1.0},
    ],
    "duration": {"kind": "steps", "value": NUM_STEPS},
    "batch_tokens": 800,
    "max_tokens": 128,
    "micro_batch_tokens": 512,
    "checkpoint_every_steps": 2,
    "validation_rows": 0,
    "optimizer": {"learning_rate": 1.0e-3},
    "workers": {"num_workers": 1, "num_cpus": 1},
}


def write_recipe(folder, storage, **fuse):
    """Writes the recipe of a run in two rounds; returns its file and the run."""
    run = stages.make_run(
        storage,
        folder / "data.jsonl",
        kind="transformers",
        collect={"top_k": 6, "signals": "lazy", "generation": {"max_tokens": 24}},
        select={"on_policy": {}},
        fuse=FUSE | fuse,
    )
    file = storage.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
    return file, run


class Driver:
    """`profuser run` until `fuse`, in a process of its own."""

    def __init__(self, file):
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.log = file.with_suffix(f".{time.monotonic_ns()}.log")
        command = [sys.executable, "-m", "ray_jobs", "run", str(file), "--until", "fuse"]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def wait(self):
        assert self.process.wait(400) == 0, self.log.read_text()

    def kill_when(self, holds):
        deadline = time.monotonic() + 300
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def history(run):
    lines = run.fuse().folder.read_bytes("metrics.jsonl").decode().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def weights(artifact):
    return load_file(f"{artifact.folder.uri}/model/model.safetensors")


def answers(artifact):
    return {row["row_id"]: row["answers"] for row in stages.whole(artifact)}


def check_same_bits(run, other):
    assert history(run) == history(other)
    for number in (1, 2):
        mine, others = (weights(each.fuse(number)) for each in (run, other))
        assert all(mine[name].equal(others[name]) for name in mine)


def test_the_target_answers_again_in_each_round_and_a_killed_engine_changes_no_bit(tmp_path):
    stages.write_corpus(tmp_path / "data.jsonl")
    _, run = write_recipe(tmp_path, tmp_path / "disturbed")
    target = run.recipe.sources[0]
    assert run.recipe.is_target(target)
    with stages.Meanwhile(lambda: run.collect(target, 2).shards(), stages.kill_an_actor):
        run_pipeline(run.recipe, until="fuse")

    # The second round's answers are those of the first round's model, and its teachers read them.
    first, second = answers(run.collect(target)), answers(run.collect(target, 2))
    assert sum(first[row] != second[row] for row in first) > 5
    examples = [row for row in stages.whole(run.select(2)) if row["mode"] == "on_policy"]
    assert len(examples) == run.select(2).manifest().counts["on_policy_examples"] > 5
    read = {row["row_id"] for artifact in run.own_signals(2) for row in stages.whole(artifact)}
    assert {row["row_id"] for row in examples} == read
    kept = [[row for row in stages.whole(run.select(n)) if row["mode"] != "on_policy"] for n in (1, 2)]
    assert kept[0] == kept[1]
    assert [record["step"] for record in history(run)] == list(range(NUM_STEPS))
    assert any(not a.equal(b) for a, b in zip(*(weights(run.fuse(n)).values() for n in (1, 2)), strict=True))

    shutil.copytree(tmp_path / "disturbed", tmp_path / "again")
    _, again = write_recipe(tmp_path, tmp_path / "again")
    for folder in ("rounds/2", "fuse"):
        (again.folder / folder).delete()
    run_pipeline(again.recipe, until="fuse")
    check_same_bits(again, run)


@pytest.mark.long
def test_drivers_that_are_killed_inside_each_round_change_no_bit(tmp_path):
    stages.write_corpus(tmp_path / "data.jsonl")
    file, undisturbed = write_recipe(tmp_path, tmp_path / "undisturbed")
    Driver(file).wait()
    file, run = write_recipe(tmp_path, tmp_path / "killed")
    training, answering = run.fuse(1), run.collect(run.recipe.sources[0], 2)
    Driver(file).kill_when(lambda: training.folder.exists("metrics.jsonl"))
    assert not training.is_complete()
    Driver(file).kill_when(lambda: 0 < len(answering.shards()) < len(run.corpus().shards()))
    assert training.is_complete()
    Driver(file).kill_when(lambda: run.fuse().folder.exists("metrics.jsonl"))
    assert run.select(2).is_complete()
    Driver(file).wait()
    check_same_bits(run, undisturbed)
