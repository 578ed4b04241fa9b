"""Stage `fuse` under kills of workers and drivers: curve and weights equal an undisturbed run's bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import torch
from mlflow import MlflowClient
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from profuser.artifacts.tracking import Tracker
from ray_jobs.runtime.cluster import connected
from ray_jobs.stages.fuse import fuse
from tests.ray import stages
from tests.ray.fuse_driver import SETTINGS, run_of
from tests.ray.stages import select_here, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_STEPS = SETTINGS["duration"]["value"]
PREEMPTION = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
TIMED = {"tokens_per_second", "model_tflops", "memory_gib"}


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """Returns a storage whose run is finished up to `select`."""
    folder = tmp_path_factory.mktemp("selected")
    write_corpus(folder / "corpus.jsonl", 80)
    select_here(run_of(folder / "storage", folder / "corpus.jsonl"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(selected, tmp_path_factory):
    folder = shutil.copytree(selected, tmp_path_factory.mktemp("undisturbed") / "run")
    assert Driver(folder, selected).wait() == 0
    return folder / "storage"


class Driver:
    """A driver of the stage in a separate process."""

    def __init__(self, folder, selected, **settings):
        self.storage = storage = folder / "storage"
        self.log = storage / f"driver-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "tests.ray.fuse_driver", str(storage)]
        command += [str(selected / "corpus.jsonl"), json.dumps(settings)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def wait(self):
        code = self.process.wait(300)
        assert code in (0, 143), self.log.read_text()
        return code

    def when_checkpoints(self, number):
        """Waits until `number` more checkpoints have been started."""
        deadline = time.monotonic() + 200
        before = names(self.storage)
        while len(names(self.storage) - before) < number:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def workers(self):
        """Returns the processes of Ray Train's workers below this driver."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in stages.command_of(child)]


def names(storage):
    return {folder.name for folder in (storage / "tiny" / "fuse").glob("train-*/checkpoint_2*")}


def history(storage):
    lines = (storage / "tiny" / "fuse" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def weights(storage):
    return load_file(storage / "tiny" / "fuse" / "model" / "model.safetensors")


def checkpoint(storage, step, folder):
    """Returns model and optimizer in float32, as they were after `step` updates."""
    files = (storage / "tiny" / "fuse").glob("train-*/*/progress.json")
    (place,) = (file.parent for file in files if json.loads(file.read_text())["step"] == step)
    dcp_to_torch_save(place, folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=False)


def leaves(tree):
    """Returns the tensors of nested mappings, in order."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in leaves(tree[key])]
    return [tree] if isinstance(tree, torch.Tensor) else []


def check_same_bits(storage, undisturbed, folder):
    assert [record["step"] for record in history(storage)] == list(range(NUM_STEPS))
    assert history(storage) == history(undisturbed)
    mine, other = weights(storage), weights(undisturbed)
    assert mine.keys() == other.keys()
    assert all(mine[name].equal(other[name]) for name in mine)
    mine, other = (leaves(checkpoint(each, NUM_STEPS, folder)) for each in (storage, undisturbed))
    assert len(mine) == len(other) > len(weights(storage))
    assert all(a.equal(b) for a, b in zip(mine, other, strict=True))


def check_same_curve(storage, undisturbed):
    """Asserts that two runs are equal up to the order of sums.

    Where the target still equals its reference, each pair's lead is zero but for rounding, and its sign, which the accuracy counts,
    says nothing.
    """
    mine, other = history(storage), history(undisturbed)
    for records in zip(mine, other, strict=True):
        leads = [record.pop("preference_lead", 0.0) for record in records]
        assert leads[0] == pytest.approx(leads[1], rel=1e-3, abs=1e-6)
        if "preference_accuracy" in records[0] and max(map(abs, leads)) < 1e-6:
            for record in records:
                del record["preference_accuracy"]
        assert records[0] == pytest.approx(records[1], rel=1e-3)


def check_logged_once(storage):
    """Asserts that one MLflow run holds each update once."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs(
        [client.get_experiment_by_name("profuser").experiment_id], "tags.`profuser.stage` = 'fuse'"
    )
    steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "learning_rate")]
    assert (len(runs), sorted(steps)) == (1, list(range(NUM_STEPS)))


def test_a_killed_worker_a_preempted_driver_and_a_killed_one_change_no_bit(selected, undisturbed, tmp_path):
    folder = shutil.copytree(selected, tmp_path / "run")
    storage = folder / "storage"
    driver = Driver(folder, selected).when_checkpoints(2)
    driver.workers()[-1].send_signal(signal.SIGKILL)
    driver.when_checkpoints(2).process.send_signal(signal.SIGTERM)
    assert driver.wait() == 143
    stopped = len(history(storage))
    assert 0 < stopped < NUM_STEPS
    half = shutil.copytree(folder, tmp_path / "half")
    trained_pairs = ["pairs" in record for record in history(undisturbed)]
    assert any(trained_pairs)
    assert not any(trained_pairs[: NUM_STEPS // 2])

    driver = Driver(folder, selected).when_checkpoints(1)
    assert f"{stopped} of {NUM_STEPS} steps were done before" in driver.log.read_text()
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    assert Driver(folder, selected).wait() == 0
    check_same_bits(storage, undisturbed, tmp_path)
    check_logged_once(storage)

    # The same half-finished run, completed by one worker (the second does not fit): another order of sums, otherwise equal.
    assert Driver(half, selected, workers={"num_workers": 2, "min_workers": 1, "num_cpus": 3}).wait() == 0
    check_same_curve(half / "storage", undisturbed)


def test_checkpoints_are_kept_by_held_out_bits_per_byte_and_the_best_is_exported(selected, tmp_path):
    folder = shutil.copytree(selected, tmp_path / "run")
    storage = folder / "storage"
    # Training only on the sources' terse answers makes the ground truth ever less likely.
    settings = {
        "export": "best",
        "schedule": [{"until": 1.0, "inference": 1.0, "training": 0.0}],
        "keep_checkpoints": 1,
    }
    assert Driver(folder, selected, **settings, duration={"kind": "steps", "value": 15}).wait() == 0
    scores = {r["step"] + 1: r["heldout_bits_per_byte"] for r in history(storage) if "heldout_bits_per_byte" in r}
    assert set(scores) == {5, 10, 15}
    assert min(scores, key=scores.get) != 15
    kept = {
        json.loads(file.read_text())["step"] for file in (storage / "tiny" / "fuse").glob("train-*/*/progress.json")
    }
    best = min(scores, key=scores.get)
    assert kept == {best, 15}
    wanted = checkpoint(storage, best, tmp_path)["model"]
    assert all(wanted[f"model.{name}"].to(weight.dtype).equal(weight) for name, weight in weights(storage).items())


def test_a_drained_node_leaves_a_checkpoint_and_the_other_continues(selected, undisturbed, tmp_path, monkeypatch):
    storage = shutil.copytree(selected, tmp_path / "run") / "storage"
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    # Room for one worker on each node.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    try:
        doomed = cluster.add_node(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with connected():
            workers = {"num_workers": 2, "min_workers": 1, "num_cpus": 2}
            run = run_of(storage, selected / "corpus.jsonl", workers=workers, keep_checkpoints=100)
            tracker = Tracker.open(f"sqlite:///{storage}/mlflow.db", "profuser", "tiny", {}, str(storage))
            begun, reclaimed = lambda: len(names(storage)) >= 2, partial(reclaim, cluster, doomed)
            with tracker.stage("fuse") as handle, stages.Meanwhile(begun, reclaimed):
                fuse(run, handle=handle)
    finally:
        cluster.shutdown()
    steps = {json.loads(f.read_text())["step"] for f in (storage / "tiny" / "fuse").glob("train-*/*/progress.json")}
    assert [step for step in steps if step % SETTINGS["checkpoint_every_steps"]], steps
    assert [record["step"] for record in history(storage)] == list(range(NUM_STEPS))
    check_same_curve(storage, undisturbed)


def reclaim(cluster, node):
    """Announces the loss of a node and removes it before the deadline, as a cloud reclaims a spot instance."""
    deadline_ms = int(1000 * (time.time() + 6))
    accepted, why = GcsClient(cluster.address).drain_node(node.node_id, PREEMPTION, "reclaimed", deadline_ms)
    assert accepted, why
    time.sleep(4)
    cluster.remove_node(node, allow_graceful=False)
