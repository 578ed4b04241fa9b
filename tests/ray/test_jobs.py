"""Stages and whole runs as jobs, submitted from a machine with a recipe and a token to a cluster of several nodes."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from cluster.harness.node_processes import LocalCluster
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL_BYTES = 1_000_000
NUM_ROWS, NUM_HELDOUT, NUM_STEPS = 304, 4, 8
STOPPED = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
ENGINES = {
    name: {"kind": kind, "dtype": "float32", "max_model_len": 128, "max_num_seqs": n}
    for name, kind, n in (("llama", "transformers", 64), ("neox", "vllm", 1))
}
"""One engine is slow, so that there is time to stop it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def run(folder):
    return folder / "shared" / "runs" / "small"


@pytest.fixture(scope="module")
def token(folder):
    """Returns a file with the cluster's token."""
    file = folder / "token"
    file.write_text(uuid.uuid4().hex)
    return file


@pytest.fixture(scope="module")
def cluster(token):
    """Yields a cluster of a head without CPUs and three nodes, with the project installed and the token in a file."""
    left_out = ("RAY_", "VLLM_", "PROFUSER_", "MLFLOW_", "PYTHON")
    own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    own |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with LocalCluster(3, 2, own) as started:
        yield started


class Desk:
    """Machine that submits jobs: a separate home, a working directory with a recipe, and Ray's command."""

    def __init__(self, folder, cluster, token):
        self.home, self.work = folder / "home", folder / "work"
        self.work.mkdir(parents=True)
        (self.home / ".ray").mkdir(parents=True)
        if token:
            (self.home / ".ray" / "auth_token").write_text(token)
        self.environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "token"}
        # Unbuffered, as on a terminal.
        self.environment |= {"RAY_ADDRESS": cluster.dashboard, "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments):
        return {"args": [str(BIN / "ray"), "job", *arguments], "cwd": self.work, "env": self.environment}

    def ray_job(self, *arguments, timeout=400):
        """Returns exit code and output of the command."""
        done = subprocess.run(
            **self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        return done.returncode, done.stdout

    @contextmanager
    def following(self, job):
        """Yields the job's log as it is written; stops following it if the body fails."""
        logs = subprocess.Popen(**self.command("logs", job, "--follow"), stdout=subprocess.PIPE, text=True)
        try:
            yield logs.stdout
        finally:
            logs.kill()
            logs.communicate()

    def submit(self, *entrypoint, options=()):
        return self.ray_job("submit", "--working-dir", ".", *options, "--", *entrypoint)


@pytest.fixture(scope="module")
def desk(folder, cluster, token, run):
    desk = Desk(folder / "desk", cluster, token.read_text())
    corpus = folder / "shared" / "corpus.jsonl"
    corpus.parent.mkdir()
    stages.write_corpus(corpus, NUM_ROWS)
    recipe = {
        "name": "small",
        "storage": str(run.parent),
        "corpus": {"path": str(corpus), "heldout_rows": NUM_HELDOUT, "rows_per_shard": stages.ROWS_PER_SHARD},
        "sources": [{"name": name, "model": model, "engine": ENGINES[name]} for name, model in stages.MODELS.items()],
        "target": {"model": "lab://sources/llama", "engine": ENGINES["llama"]},
        "collect": {"top_k": 6, "generation": {"max_tokens": 24}},
        "rewards": [{"kind": "exact_match", "name": "exact", "accept_above": None}],
        "fuse": {
            "duration": {"kind": "steps", "value": NUM_STEPS},
            "batch_tokens": 800,
            "max_tokens": 128,
            "validation_rows": 6,
        },
        "evaluate": {"sources": False},
    }
    (desk.work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return desk


def wait_for(condition, log, timeout=200):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.1)


def shards(artifact):
    return {file.name: file.stat().st_mtime_ns for file in artifact.glob("shard-*.parquet")}


def row_ids(artifact):
    return [
        name for file in sorted(artifact.glob("shard-*.parquet")) for name in pq.read_table(file)["row_id"].to_pylist()
    ]


def test_a_job_from_the_repository_uploads_no_data_no_models_and_no_environment(tmp_path):
    excludes = get_runtime_env_default_excludes()
    packaging.create_package(str(PROJECT), tmp_path / "working.zip", include_gitignore=True, excludes=excludes)
    assert (tmp_path / "working.zip").stat().st_size < SMALL_BYTES
    names = zipfile.ZipFile(tmp_path / "working.zip").namelist()
    assert not [name for name in names if name.endswith((".safetensors", ".parquet", ".gz", ".so", ".py"))]


@pytest.mark.parametrize("wrong", [None, "f" * 32])
def test_a_job_without_the_clusters_token_is_refused(tmp_path, cluster, wrong):
    stranger = Desk(tmp_path / "desk", cluster, wrong)
    code, output = stranger.submit("profuser", "--help")
    assert code != 0
    assert "auth" in output.lower(), output
    assert "submitted successfully" not in output


def test_a_single_stage_is_submitted_and_refuses_unfinished_inputs(desk, run):
    code, output = desk.submit("python", "-m", "ray_jobs", "prepare", "recipe.yaml")
    assert code == 0, output
    assert "stopped after prepare; run without --only to continue" in output
    assert len(row_ids(run / "prepare" / "train")) == NUM_ROWS - NUM_HELDOUT
    code, output = desk.submit("python", "-m", "ray_jobs", "fuse", "recipe.yaml")
    assert code == 1
    needed = "collect/llama, collect/neox, rewards/exact, select"
    assert f"profuser: fuse needs unfinished inputs: {needed}; begin with the stage collect" in output
    assert "exit code 2" in output
    assert "Traceback" not in output
    states = {name: entry["state"] for name, entry in json.loads((run / "summary.json").read_text())["stages"].items()}
    assert states.pop("prepare/train") == "finished"
    assert set(states.values()) == {"waiting"}


def test_a_stopped_job_unwinds_and_a_resubmitted_one_continues_from_its_shards(desk, run):
    artifact = run / "collect" / "neox"
    collect = ("python", "-m", "ray_jobs", "collect", "recipe.yaml", "--source", "neox")
    code, output = desk.submit(
        *collect, options=("--no-wait", "--submission-id", "first", "--runtime-env-json", STOPPED)
    )
    assert code == 0, output
    with desk.following("first") as log:
        assert any(line.startswith("run small: ") for line in log)
        assert "RUNNING" in desk.ray_job("status", "first")[1]
        wait_for(lambda: len(shards(artifact)) >= 2, lambda: desk.ray_job("logs", "first")[1])
        code, output = desk.ray_job("stop", "first")
        assert code == 0, output
        rest = log.read()
    assert "Job 'first' was stopped" in desk.ray_job("status", "first")[1]
    assert "Traceback" not in rest
    kept = shards(artifact)
    assert 2 <= len(kept) < (NUM_ROWS - NUM_HELDOUT) // stages.ROWS_PER_SHARD
    assert not (run / "lock.json").exists()
    assert not (artifact / "manifest.json").exists()
    assert not list(run.rglob("*.tmp"))
    assert json.loads((run / "summary.json").read_text())["state"] == "failed"

    code, output = desk.submit(*collect)
    assert code == 0, output
    (before,) = re.findall(r"collect/neox: ([0-9,]+) of 300 rows were done before", output)
    assert int(before) == len(kept) * stages.ROWS_PER_SHARD
    assert shards(artifact).items() >= kept.items()
    assert row_ids(artifact) == row_ids(run / "prepare" / "train")
    assert not shards(run / "collect" / "llama")


def test_a_whole_run_submitted_as_a_job_ends_with_a_model(desk, run):
    from transformers import AutoModelForCausalLM

    code, output = desk.submit("profuser", "run", "recipe.yaml")
    assert code == 0, output[-5000:]
    assert "collect/neox: done before" in output
    assert "succeeded" in output
    assert f"report: {run / 'report' / 'index.html'}" in output
    assert json.loads((run / "summary.json").read_text())["state"] == "finished"
    assert AutoModelForCausalLM.from_pretrained(run / "fuse" / "model").config.architectures == ["LlamaForCausalLM"]
