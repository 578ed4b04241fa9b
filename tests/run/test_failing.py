"""A benchmark that fails stops no later stage; the run ends with its error, and a second run repeats it and the report alone."""

import contextlib
import json
from types import SimpleNamespace

import pytest

from profuser.errors import EngineError, ProfuserError
from profuser.recipe.loading import parse_recipe
from profuser.run.failures import read_failures
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import REGISTRY
from ray_jobs.pipeline import pipeline
from ray_jobs.runtime import concurrency
from ray_jobs.runtime.shards import finish
from ray_jobs.stages import report
from tests import tiny
from tests.evaluation.packs import write_pack

NAMES = ("arc_challenge", "winogrande")
FAULT = EngineError("no room for\nthe prompts; use a shorter one")


def finished(part):
    """Finishes a part's artifacts; returns the manifest of the first."""
    manifests = [finish(artifact, [{"rows": 1}], 0.0, score=0.5) for artifact in part.make()]
    return manifests[0]


class Stages:
    """Stands in for the functions of all stages: each finishes its artifacts, or raises an error that is set by its name."""

    def __init__(self):
        self.errors, self.done = {}, []

    def job(self, stage):
        if stage == "report":
            return lambda run, handle: self._call("report", lambda: report.report(run, handle))

        def make(run, *arguments):
            part = next(part for part in REGISTRY[stage].parts(run) if part.arguments == arguments)
            return self._call(part.name, lambda: finished(part))

        return make

    def _call(self, name, make):
        self.done.append(name)
        if name in self.errors:
            raise self.errors[name]
        return make()


@pytest.fixture
def stages(monkeypatch):
    found = Stages()
    handle = SimpleNamespace(log_metrics=lambda *_: None, log_dataset=lambda *_: None, log_artifacts=lambda *_: None)
    tracker = SimpleNamespace(
        parent=handle, stage=lambda _: contextlib.nullcontext(handle), end=lambda failed=False: None
    )
    tracker.log_dataset = handle.log_dataset
    monkeypatch.setattr(pipeline, "_job", found.job)
    monkeypatch.setattr(pipeline, "connected", contextlib.nullcontext)
    monkeypatch.setattr(pipeline, "total_gpus", lambda: 1.0)
    monkeypatch.setattr(pipeline, "Tracker", SimpleNamespace(open=lambda *_: tracker))
    monkeypatch.setattr(pipeline, "report_running", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(concurrency, "concurrent_parts", lambda *_: 1)
    monkeypatch.setattr(report, "write_run_report", lambda run, handle: found.done.append(dict(read_failures(run))))
    return found


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    model = tiny.llama(tmp_path / "model")
    benchmarks = [{"name": name, "path": write_pack(tmp_path / name, name), "num_fewshot": 0} for name in NAMES]
    content = {
        "name": "failing",
        "storage": str(tmp_path / "runs"),
        "corpus": {"path": str(tmp_path / "data.jsonl")},
        "sources": [{"name": "a", "model": model}],
        "target": {"model": model},
        "rewards": [{"kind": "exact_match", "name": "exact"}],
        "evaluate": {"benchmarks": benchmarks},
    }
    return parse_recipe(content, "the test")


def state(recipe):
    run = FusionRun(recipe)
    return json.loads((run.folder.read_bytes("summary.json")).decode())["state"]


def test_judge_and_report_follow_a_failed_benchmark_and_a_second_run_repeats_only_it(stages, recipe):
    failed, reported = "benchmarks/fused/arc_challenge", []
    stages.errors[failed] = FAULT
    with pytest.raises(
        EngineError, match=f"1 failed, the other parts are finished; run again to retry: {failed}: no room"
    ):
        pipeline.run_pipeline(recipe, after_stage=lambda stage, _: reported.append(stage))
    reasons = {failed: "no room for the prompts; use a shorter one"}
    assert stages.done[-3:] == ["judge/exact", "report", reasons]
    assert reported[-3:] == ["benchmarks", "judge", "report"]
    assert all(f"benchmarks/{model}/{name}" in stages.done for model in ("target", "fused") for name in NAMES)
    assert state(recipe) == "failed"

    stages.done.clear()
    stages.errors[failed] = KeyError("documents")
    with pytest.raises(KeyError, match="documents"):
        pipeline.run_pipeline(recipe)
    assert stages.done == [failed, "report", {failed: "KeyError: 'documents'"}]

    stages.done.clear()
    stages.errors.clear()
    pipeline.run_pipeline(recipe)
    assert stages.done == [failed, "report", {}]
    assert state(recipe) == "finished"
    stages.done.clear()
    pipeline.run_pipeline(recipe)
    assert stages.done == []


def test_every_failed_benchmark_is_named_and_other_stages_still_end_the_run_at_once(stages, recipe):
    names = [f"benchmarks/{model}/arc_challenge" for model in ("target", "fused")]
    stages.errors |= dict.fromkeys(names, FAULT)
    stages.errors["judge/exact"] = ProfuserError("no judge")
    with pytest.raises(ProfuserError, match="no judge"):
        pipeline.run_pipeline(recipe)
    assert stages.done[-1] == "judge/exact"
    assert read_failures(FusionRun(recipe)).keys() == set(names)
    del stages.errors["judge/exact"]
    with pytest.raises(EngineError, match=f"2 failed.*{names[0]}: no room.*; {names[1]}: no room"):
        pipeline.run_pipeline(recipe)
    assert "report" in stages.done
