"""Benchmarks as Ray tasks: scores equal the model's own, a killed process is retried, and nothing finished is redone."""

import json
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from profuser.errors import EngineError
from profuser.evaluation.benchmarks.data import read_pack
from profuser.evaluation.benchmarks.results import benchmark_score
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import ModelConfig, OwnTemplate
from profuser.run.results import read_benchmarks
from ray_jobs.pipeline.pipeline import run_pipeline
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.concurrency import concurrent_models
from ray_jobs.stages.benchmarks import _Measurer, benchmarks
from tests import tiny
from tests.benchmarks import base_run
from tests.benchmarks.arms import fuse
from tests.evaluation.packs import write_pack
from tests.ray.stages import Meanwhile, command_of, make_run, select_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
CONTEXT = 1024


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with connected():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


@pytest.fixture
def make(tmp_path):
    def make(model, kind, benchmarks=None, **engine):
        rows = [{"question": f"Sort {number} b a", "answer": f"a b {number}"} for number in range(12)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        benchmark = {"name": "arc_challenge", "path": write_pack(tmp_path / "arc", "arc_challenge"), "num_fewshot": 2}
        target = {"model": model, "engine": {"kind": kind, "dtype": "float32", **engine}}
        evaluate = {"benchmarks": benchmarks or [benchmark], "sources": False}
        truth = [{"until": 1.0, "inference": 0.0, "training": 1.0}]
        fuse = {"duration": {"kind": "steps", "value": 1}, "validation_rows": 0, "schedule": truth}
        changes = {"target": target, "evaluate": evaluate | {"generation": {"max_tokens": 4}}, "fuse": fuse}
        return make_run(tmp_path, tmp_path / "data.jsonl", {"llama": model}, **changes)

    return make


def scored_here(model, config):
    """Runs the same benchmark in this process, on Transformers."""
    from profuser.evaluation.benchmarks.models import load_lm
    from profuser.evaluation.benchmarks.runs import run_benchmark
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    torch.set_num_threads(1)
    lm = load_lm(model, None, EngineConfig(kind="transformers"), OwnTemplate())
    return run_benchmark(lm, load_benchmark(config, read_pack(config.name, config.path, config.shots)))


def tasks():
    """Returns our processes that measure."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ray::_Measurer" in command_of(process)]


@contextmanager
def watched_processes():
    """Gives the ids of all our processes that measure while it lasts."""
    found, ended = set(), threading.Event()
    with Meanwhile(lambda: found.update(task.pid for task in tasks()) or ended.is_set(), lambda: None):
        try:
            yield found
        finally:
            ended.set()


def kill_a_task():
    os.kill(tasks()[0].pid, signal.SIGKILL)


@pytest.mark.vllm
def test_vllm_scores_equal_transformers_even_if_its_process_is_killed(make, model):
    run = make(model, "vllm")
    (config,) = run.recipe.evaluate.benchmarks
    assert concurrent_models(run) == 1
    with Meanwhile(tasks, kill_a_task):
        manifest = benchmarks(run, "target", config)
    wanted = scored_here(model, config)
    (found,) = run.benchmark("target", config).tables()
    for column in ("item_id", "doc_hash", "metrics", "prediction", "target", "truncated"):
        assert found[column].to_pylist() == wanted[column].to_pylist(), column
    assert manifest.metrics["score"] == benchmark_score(wanted) == manifest.metrics["acc_norm"]
    assert manifest.metrics["items"] == manifest.counts["rows"] == 6
    assert manifest.device_seconds > 0
    assert read_benchmarks(run)["arc_challenge"]["target"].num_rows == 6

    # As if the driver was killed between shard and manifest.
    folder = Path(run.benchmark("target", config).folder.uri)
    written = (folder / "shard-00000.parquet").stat().st_mtime_ns
    (folder / "manifest.json").unlink()
    assert benchmarks(run, "target", config).metrics == manifest.metrics
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns == written


def fuse_here(run):
    """Makes everything before the stage `benchmarks`, in this process."""
    select_here(run)
    fuse(run)
    path, config = run.evaluated_model("fused")
    reader = base_run.load(run, config, path)
    base_run.evaluate(reader, run, run.evaluate("fused"))
    reader.loop.close()


def test_a_model_is_loaded_once_for_all_its_benchmarks_and_one_that_fails_stops_neither_others_nor_the_report(
    make, tmp_path, model
):
    names = ("arc_challenge", "gsm8k", "truthfulqa_mc2")
    packs = [{"name": name, "path": write_pack(tmp_path / name, name), "num_fewshot": 0} for name in names]
    run = make(model, "transformers", packs, max_model_len=200)
    fuse_here(run)
    reason = "context of 200 tokens has no room for the answers of gsm8k"
    both = f"2 failed.*benchmarks/target/gsm8k: .*{reason}.*benchmarks/fused/gsm8k: "
    with watched_processes() as loads, pytest.raises(EngineError, match=both):
        run_pipeline(run.recipe)
    first, failed, last = (run.benchmark("target", config).manifest() for config in run.recipe.evaluate.benchmarks)
    assert failed is None
    assert first.counts["rows"] == last.counts["rows"] == 6
    # One process per model (target and fused), which loads it once.
    assert len(loads) == 2
    assert all(artifact.manifest() for artifact in run.artifacts("judge"))
    page = run.report().folder.read_bytes("index.html").decode()
    assert all(f"gsm8k of {name} was not measured: " in page for name in ("target (llama)", "fused"))
    assert reason in page


def test_a_process_loads_its_model_once(monkeypatch):
    loads = []
    monkeypatch.setattr("profuser.evaluation.benchmarks.models.load_lm", lambda *given: loads.append(given) or object())
    measurer = _Measurer("folder", ModelConfig(model="folder"), OwnTemplate())
    monkeypatch.setattr("ray_jobs.stages.benchmarks.local_model", lambda path, _: path)
    assert measurer._loaded() is measurer._loaded()
    assert len(loads) == 1


def test_an_unloadable_model_is_reported_in_one_line(make, tmp_path, model):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    run = make(str(broken), "transformers")
    with pytest.raises(EngineError, match="broken: the harness could not load the model into transformers") as raised:
        benchmarks(run, "target", run.recipe.evaluate.benchmarks[0])
    assert "\n" not in str(raised.value)
