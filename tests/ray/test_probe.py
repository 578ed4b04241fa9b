"""`profuser plan --probe`: the plan is compared with the run that follows, and does not affect it."""

import json
import sys

import pytest
import yaml

from profuser.planning.plan_file import PLAN, read_plan
from profuser.report.facts import RunFacts
from profuser.report.tables.plan import plan_error_lines
from profuser.run.inputs import BEGAN
from ray_jobs.cli import app as cli
from ray_jobs.cli.probe import probe
from ray_jobs.runtime.cluster import connected
from ray_jobs.stages.collect import collect
from ray_jobs.stages.prepare import prepare
from ray_jobs.stages.report import plan_errors
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
PRICE = {"price_per_device_hour": 2.5, "currency": "EUR"}


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "data.jsonl"
    stages.write_corpus(file)
    return file


@pytest.mark.vllm
def test_a_run_costs_about_what_its_probe_predicted(tmp_path, corpus):
    run = stages.make_run(tmp_path / "runs", corpus, kind="vllm", plan=PRICE, pool={"num_cpus": 1})
    with connected():
        plan = probe(run, 8)
        assert {*run.folder.names()} == {BEGAN, PLAN}
        prepare(run)
        manifests = {source.name: collect(run, source) for source in run.recipe.sources}
    assert read_plan(run.folder) == plan
    assert (plan.num_probed, plan.num_rows) == (8, stages.NUM_ROWS - 4)
    compared = [note for note in plan.notes if "vLLM and Transformers differ by 0.00" in note]
    assert [note.partition(":")[0] for note in compared] == [f"source {source.name}" for source in run.recipe.sources]
    for stage in plan.stages:
        counts, found = manifests[stage.stage.removeprefix("collect/")].counts, stage.quantities
        assert found["training_tokens"].value == pytest.approx(counts["training_tokens"], rel=0.4)
        assert found["inference_tokens"].value == pytest.approx(counts["inference_tokens"], rel=1.0)
        assert found["training_tokens"].low > 0
        assert found["money"].value == pytest.approx(2.5 * found["device_hours"].value)
    errors = {(error.stage, error.quantity): error for error in plan_errors(run)}
    measured = {"training_tokens", "inference_tokens", "seconds", "device_hours", "disk_bytes", "money"}
    assert {quantity for _, quantity in errors} == measured
    for source in run.recipe.sources:
        disk = errors[f"collect/{source.name}", "disk_bytes"]
        files = [file for file in (tmp_path / "runs/tiny/collect" / source.name).iterdir() if file.suffix == ".parquet"]
        assert disk.measured == sum(file.stat().st_size for file in files)
        assert disk.planned.value == pytest.approx(disk.measured, rel=0.3)
        hours, money = (errors[f"collect/{source.name}", quantity] for quantity in ("device_hours", "money"))
        manifest = manifests[source.name]
        assert 3600 * hours.measured == pytest.approx(manifest.device_seconds)
        assert 0 < manifest.device_seconds < manifest.seconds
        assert money.measured == pytest.approx(2.5 * hours.measured)
    assert len(plan_error_lines(RunFacts("tiny", {}, plan_errors=plan_errors(run)))) == len(errors)
    other = stages.make_run(tmp_path / "runs", corpus, collect={"top_k": 5, "generation": {"max_tokens": 24}})
    for source in other.recipe.sources:
        (other.folder / "collect" / source.name).delete()
    assert plan_errors(other) == []


def test_a_probe_larger_than_the_corpus_probes_all_rows(tmp_path, corpus, monkeypatch, capsys):
    run = stages.make_run(
        tmp_path / "runs",
        corpus,
        models={"llama": stages.MODELS["llama"]},
        kind="transformers",
        collect={"top_k": 6, "signals": "lazy", "generation": {"max_tokens": 24}},
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
    monkeypatch.setattr(sys, "argv", ["profuser", "plan", str(file), "--probe", "1000"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "--probe 1,000: the corpus has only 36 rows; all are probed" in out
    assert "36 of 36 rows probed" in out
    stages_planned = json.loads((tmp_path / "runs/tiny" / PLAN).read_text())["stages"]
    assert [stage["stage"] for stage in stages_planned] == ["collect/llama", "signals/llama"]
    assert all(number["margin"] == 0 for stage in stages_planned for number in stage["quantities"].values())
    assert "money" not in stages_planned[0]["quantities"]
    with connected():
        prepare(run)
        counts = collect(run, run.recipe.sources[0]).counts
    assert stages_planned[0]["quantities"]["training_tokens"]["value"] == counts["training_tokens"]
