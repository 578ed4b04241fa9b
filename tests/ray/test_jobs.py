"""Stages and whole runs as jobs, submitted from a machine that has a recipe and a token, on a cluster of several nodes."""

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
    for name, kind, n in (("llama", "vllm", 64), ("neox", "transformers", 1))
}
"""One is slow, so that there is time to stop it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def run(folder):
    return folder / "shared" / "runs" / "small"


@pytest.fixture(scope="module")
def token(folder):
    """A file with the cluster's token."""
    file = folder / "token"
    file.write_text(uuid.uuid4().hex)
    return file


@pytest.fixture(scope="module")
def cluster(token):
    """A head without CPUs and three nodes, which have the project installed and the token in a file."""
    left_out = ("RAY_", "VLLM_", "PROFUSER_", "MLFLOW_", "PYTHON")
    own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    own |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with LocalCluster(3, 2, own) as started:
        yield started


class Desk:
    """Where jobs are submitted from: a home of its own, a working directory with a recipe, and Ray's command."""

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
        """Exit code, and all that the command says."""
        done = subprocess.run(
            **self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        return done.returncode, done.stdout

    @contextmanager
    def following(self, job):
        """The job's log as it is written; not to its end where the body fails."""
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
        "rewards": [{"kind": "exact_match", "name": "exact"}],
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


def wait_for(condition, what_is_said, timeout=200):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what_is_said()
        time.sleep(0.1)


def shards(artifact):
    return {file.name: file.stat().st_mtime_ns for file in artifact.glob("shard-*.parquet")}


def row_ids(artifact):
    return [
        name for file in sorted(artifact.glob("shard-*.parquet")) for name in pq.read_table(file)["row_id"].to_pylist()
    ]


def test_from_the_repository_a_job_takes_no_data_no_models_and_no_environment_along(tmp_path):
    excludes = get_runtime_env_default_excludes()
    packaging.create_package(str(PROJECT), tmp_path / "working.zip", include_gitignore=True, excludes=excludes)
    assert (tmp_path / "working.zip").stat().st_size < SMALL_BYTES
    names = zipfile.ZipFile(tmp_path / "working.zip").namelist()
    assert not [name for name in names if name.endswith((".safetensors", ".parquet", ".gz", ".so", ".py"))]


@pytest.mark.parametrize("wrong", [None, "f" * 32])
def test_without_the_clusters_token_nothing_is_submitted(tmp_path, cluster, wrong):
    stranger = Desk(tmp_path / "desk", cluster, wrong)
    code, said = stranger.submit("profuser", "--help")
    assert code != 0
    assert "auth" in said.lower(), said
    assert "submitted successfully" not in said


def test_a_stage_is_submitted_alone_and_refuses_where_it_has_nothing_to_read(desk, run):
    code, said = desk.submit("python", "-m", "ray_jobs", "prepare", "recipe.yaml")
    assert code == 0, said
    assert "stopped after prepare; without --only it goes on" in said
    assert len(row_ids(run / "prepare" / "train")) == NUM_ROWS - NUM_HELDOUT
    code, said = desk.submit("python", "-m", "ray_jobs", "fuse", "recipe.yaml")
    assert code == 1
    needed = "collect/llama, collect/neox, rewards/exact, select"
    assert f"profuser: fuse needs what is not finished: {needed}; begin with the stage collect" in said
    assert "exit code 2" in said
    assert "Traceback" not in said
    states = {name: entry["state"] for name, entry in json.loads((run / "summary.json").read_text())["stages"].items()}
    assert states.pop("prepare/train") == "finished"
    assert set(states.values()) == {"waiting"}


def test_a_job_that_is_stopped_unwinds_and_one_that_is_submitted_again_goes_on_from_its_shards(desk, run):
    artifact = run / "collect" / "neox"
    collect = ("python", "-m", "ray_jobs", "collect", "recipe.yaml", "--source", "neox")
    code, said = desk.submit(*collect, options=("--no-wait", "--submission-id", "first", "--runtime-env-json", STOPPED))
    assert code == 0, said
    with desk.following("first") as log:
        assert any(line.startswith("run small: ") for line in log)
        assert "RUNNING" in desk.ray_job("status", "first")[1]
        wait_for(lambda: len(shards(artifact)) >= 2, lambda: desk.ray_job("logs", "first")[1])
        code, said = desk.ray_job("stop", "first")
        assert code == 0, said
        rest = log.read()
    assert "Job 'first' was stopped" in desk.ray_job("status", "first")[1]
    assert "Traceback" not in rest
    kept = shards(artifact)
    assert 2 <= len(kept) < (NUM_ROWS - NUM_HELDOUT) // stages.ROWS_PER_SHARD
    assert not (run / "lock.json").exists()
    assert not (artifact / "manifest.json").exists()
    assert not list(run.rglob("*.tmp"))
    assert json.loads((run / "summary.json").read_text())["state"] == "failed"

    code, said = desk.submit(*collect)
    assert code == 0, said
    (before,) = re.findall(r"collect/neox: ([0-9,]+) of 300 rows were done before", said)
    assert int(before) == len(kept) * stages.ROWS_PER_SHARD
    assert shards(artifact).items() >= kept.items()
    assert row_ids(artifact) == row_ids(run / "prepare" / "train")
    assert not shards(run / "collect" / "llama")


def test_the_whole_run_is_a_job_too_and_ends_with_a_model(desk, run):
    from transformers import AutoModelForCausalLM

    code, said = desk.submit("profuser", "run", "recipe.yaml")
    assert code == 0, said[-5000:]
    assert "collect/neox: done before" in said
    assert "succeeded" in said
    assert f"report: {run / 'report' / 'index.html'}" in said
    assert json.loads((run / "summary.json").read_text())["state"] == "finished"
    assert AutoModelForCausalLM.from_pretrained(run / "fuse" / "model").config.architectures == ["LlamaForCausalLM"]
