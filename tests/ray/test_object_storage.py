"""A run with everything in a bucket (corpus, models, runs, MLflow artifacts), through an outage of the object store."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from profuser.models.lab_paths import assets_path
from profuser.run.finding import find_run, finished_model
from profuser.storage.folder import Folder
from tests.object_store import object_store
from tests.ray.stages import Meanwhile
from tests.tracking_server import tracking_server, with_postgres

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200), with_postgres]

PROFUSER = Path(sys.executable).parent / "profuser"
NUM_ROWS, NUM_HELDOUT, NUM_STEPS, ROWS_PER_SHARD = 40, 8, 4, 4
OUTAGE_SECONDS = 15
"""Longer than Arrow's own retries."""


@pytest.fixture(scope="module")
def store():
    with object_store() as made:
        for name in ("sources/llama", "sources/neox", "rewards/brisk"):
            made.put(assets_path() / name, f"models/{name}")
        yield made


@pytest.fixture
def variables(store, tmp_path, monkeypatch):
    """Sets the environment variables of a user's set-up, here and in every started process."""
    with tracking_server(store, tmp_path / "mlflow.log") as tracking:
        own = store.environment | {"MLFLOW_TRACKING_URI": tracking, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield own


@pytest.fixture
def recipe(store, tmp_path):
    with gzip.open(assets_path() / "corpus" / "train.jsonl.gz", "rb") as stream:
        (tmp_path / "data.jsonl").write_bytes(b"".join(next(stream) for _ in range(NUM_ROWS)) + b"not json\n")
    store.put(tmp_path / "data.jsonl", "corpus/data.jsonl")
    # Only one on vLLM: Transformers starts faster.
    engines = {
        name: {"kind": kind, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 16}
        for name, kind in (("llama", "vllm"), ("neox", "transformers"))
    }
    models = {name: store.uri("models", "sources", name) for name in ("llama", "neox")}
    corpus = {"heldout_rows": NUM_HELDOUT, "rows_per_shard": ROWS_PER_SHARD, "max_quarantined_fraction": 0.1}
    content = {
        "name": "away",
        "storage": store.uri("runs"),
        "corpus": {"path": store.uri("corpus"), **corpus},
        "sources": [{"name": name, "model": model, "engine": engines[name]} for name, model in models.items()],
        "target": {"model": models["llama"], "engine": engines["neox"]},
        "collect": {"top_k": 6, "generation": {"max_tokens": 24}},
        "rewards": [{"kind": "reward_model", "name": "brisk", "model": store.uri("models", "rewards", "brisk")}],
        "fuse": {
            "duration": {"kind": "steps", "value": NUM_STEPS},
            "batch_tokens": 512,
            "max_tokens": 128,
            "checkpoint_every_steps": 2,
            "optimizer": {"learning_rate": 3.0e-3},
        },
        "evaluate": {"sources": False, "generation": {"max_tokens": 24}},
        "tracking": {"registered_model": "fused"},
    }
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "away.yaml"


def run(recipe):
    done = subprocess.run([PROFUSER, "run", recipe], cwd=recipe.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_a_run_in_a_bucket_survives_an_outage_and_ends_with_every_row_once(store, variables, recipe):
    def shards():
        return list(store.sizes("runs/away/collect/llama/shard-"))

    def interrupt_the_store():
        store.door.shut()
        num_collected.append(len(shards()))
        time.sleep(OUTAGE_SECONDS)
        num_collected.append(len(shards()))
        store.door.open()

    num_collected = []
    with Meanwhile(shards, interrupt_the_store, timeout=600):
        print(run(recipe).stdout)
    assert num_collected[0] == num_collected[1] < (NUM_ROWS - NUM_HELDOUT) / ROWS_PER_SHARD
    found = find_run("away", store.uri("runs"))
    check_rows(found, store)
    check_model(found)
    check_tracking(found, store, variables["MLFLOW_TRACKING_URI"])
    check_no_leftovers(store, recipe.parent)

    before = store.versions("runs/away/")
    assert "done before" in run(recipe).stdout
    touched = {
        key.removeprefix("runs/away/")
        for key, version in store.versions("runs/away/").items()
        if version != before.get(key)
    }
    assert touched <= {"recipe.yaml", "summary.json"}


def check_rows(found, store):
    """Asserts that every artifact has each usable row once, and the quarantine the broken one, under the user's path."""
    ids = row_ids(found.corpus())
    assert len(set(ids)) == len(ids) == NUM_ROWS - NUM_HELDOUT
    for artifact in (*found.artifacts("collect"), *found.artifacts("rewards")):
        assert row_ids(artifact) == ids, artifact.stage
    assert sorted(set(row_ids(found.select()))) == sorted(ids)
    (refused,) = pa.concat_tables(found.quarantine().tables()).to_pylist()
    assert (refused["file"], refused["line"]) == (store.uri("corpus", "data.jsonl"), NUM_ROWS + 1)
    history = found.fuse().folder.read_bytes("metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(NUM_STEPS))


def row_ids(artifact):
    return pa.concat_tables(artifact.tables(["row_id"]))["row_id"].to_pylist()


def check_model(found):
    """Asserts that the fused model and its card are in the bucket, and that serving loads it from there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from profuser.models.reference import local_model

    model = finished_model(found)
    assert model == found.folder.path("fuse/model")
    local = local_model(model)
    assert AutoTokenizer.from_pretrained(local).chat_template
    assert AutoModelForCausalLM.from_pretrained(local).config.architectures == ["LlamaForCausalLM"]
    assert Folder.at(model).exists("README.md")
    bits = [found.evaluate(name).manifest().metrics["bits_per_byte"] for name in ("target", "fused")]
    assert bits[0] != bits[1]
    assert found.report().folder.sizes()["index.html"] > 10_000
    assert {entry["state"] for entry in found.folder.read_json("summary.json")["stages"].values()} == {"finished"}


def check_tracking(found, store, uri):
    """Asserts that MLflow has one run with a child per stage, the report in the bucket, and the registered model."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("profuser").experiment_id])
    stages = found.folder.read_json("summary.json")["stages"]
    assert sorted(run.info.run_name for run in runs) == sorted(["away", *(f"{stage} (away)" for stage in stages)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (fuse,) = (run.info.run_id for run in runs if run.info.run_name == "fuse (away)")
    assert sorted(rate.step for rate in client.get_metric_history(fuse, "learning_rate")) == list(range(NUM_STEPS))
    assert any(key.endswith("/report/index.html") for key in store.sizes("mlflow/"))
    assert client.get_model_version("fused", "1").source == finished_model(found)


def check_no_leftovers(store, here):
    """Asserts that no partial file is left in the bucket, and no file of the run next to the recipe."""
    assert not [key for key in store.sizes("runs/") if key.endswith((".tmp", ".bad"))]
    assert sorted(path.name for path in here.iterdir()) == ["away.yaml", "cache", "data.jsonl", "mlflow.log"]
