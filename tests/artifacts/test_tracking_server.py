"""Tracking to an MLflow server with PostgreSQL and artifacts in a bucket; an unreachable server is reported at set-up."""

import sys
import time

import pytest

from cluster.harness.node_processes import free_port
from profuser.artifacts.tracking import RunHandle, Tracker
from profuser.errors import UserError
from tests.object_store import object_store
from tests.tracking_server import tracking_server, with_postgres

RECIPE = {"name": "demo", "fuse": {"beta": 0.11}}


@pytest.fixture(scope="module")
def store():
    with object_store() as made:
        yield made


@pytest.fixture(scope="module")
def uri(store, tmp_path_factory):
    with tracking_server(store, tmp_path_factory.mktemp("mlflow") / "log") as made:
        yield made


def open_tracker(uri):
    return Tracker.open(uri, "profuser", "demo", RECIPE, "unused")


def test_the_driver_logs_once_what_workers_on_other_machines_could_not_log(tmp_path):
    from mlflow import MlflowClient

    handle = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "profuser", "demo", RECIPE, str(tmp_path)).parent
    assert handle.is_here()
    assert not RunHandle("sqlite:////nowhere/mlflow.db", handle.run_id).is_here()
    assert RunHandle("http://tracking:5000", handle.run_id).is_here()
    records = [{"step": float(step), "rate": 0.1 * step} for step in range(4)]
    handle.log_metrics(records[0], 0)
    for _ in range(2):
        handle.log_missing(records, "rate")
    history = MlflowClient(handle.uri).get_metric_history(handle.run_id, "rate")
    assert [metric.step for metric in history] == [0, 1, 2, 3]


@with_postgres
@pytest.mark.slow
def test_a_run_its_stages_and_its_model_are_on_the_server_and_its_files_in_the_bucket(uri, store, tmp_path):
    from mlflow import MlflowClient

    (tmp_path / "index.html").write_text("a report")
    tracker = open_tracker(uri)
    with tracker.stage("fuse") as handle:
        for step in range(3):
            RunHandle(uri, handle.run_id).log_metrics({"learning_rate": 0.5 / (step + 1), "tokens": 7}, step)
        handle.log_artifacts(tmp_path, "report")
    with pytest.raises(RuntimeError), open_tracker(uri).stage("evaluate/fused"):
        raise RuntimeError
    tracker.log_dataset("corpus", "s3://bucket/data.jsonl", "0123")
    model = store.uri("runs", "demo", "fuse", "model")
    assert tracker.register("fused", model) == open_tracker(uri).register("fused", model) == "1"
    tracker.end()

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("profuser").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert {name: run.info.status for name, run in runs.items()} == {
        "demo": "FINISHED",
        "fuse (demo)": "FINISHED",
        "evaluate/fused (demo)": "FAILED",
    }
    parent, fuse = runs["demo"], runs["fuse (demo)"]
    assert parent.data.params == {"name": "demo", "fuse.beta": "0.11"}
    assert [given.dataset.name for given in parent.inputs.dataset_inputs] == ["corpus"]
    assert fuse.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert RunHandle(uri, fuse.info.run_id).last_step("learning_rate") == 2
    rates = client.get_metric_history(fuse.info.run_id, "learning_rate")
    assert [(rate.step, rate.value) for rate in rates] == [(0, 0.5), (1, 0.25), (2, 0.5 / 3)]
    assert [file.path for file in client.list_artifacts(fuse.info.run_id, "report")] == ["report/index.html"]
    (key,) = store.sizes("mlflow/")
    assert fuse.info.run_id in key
    assert store.read(key) == b"a report"
    assert client.get_model_version("fused", "1").source == model


@with_postgres
@pytest.mark.slow
def test_a_wrong_path_on_the_server_is_reported_at_set_up(uri):
    with pytest.raises(UserError, match=rf"tracking: MLflow at {uri}/none: .*MLFLOW_TRACKING_URI"):
        open_tracker(f"{uri}/none")


def test_an_unwritable_artifact_store_is_reported_at_set_up(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(
        UserError, match=r"keeps artifacts at s3://bucket/mlflow.*, but boto3 is not installed; pip install"
    ):
        Tracker.open(uri, "profuser", "demo", RECIPE, "s3://bucket/mlflow")


def test_an_unreachable_server_is_reported_at_set_up(monkeypatch):
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    uri, start = f"http://127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(
        UserError, match=rf"tracking: MLflow at {uri}: .*; check that it runs and MLFLOW_TRACKING_URI"
    ) as e:
        open_tracker(uri)
    assert time.monotonic() - start < 30
    assert "\n" not in str(e.value)
