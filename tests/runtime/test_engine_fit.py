"""Engines on CPUs: the type that `dtype: auto` becomes, decided once for a run, and the CPUs and memory of an actor."""

import json

import pytest

from profuser.recipe.loading import parse_recipe
from profuser.recipe.verifiers import CodeTestsConfig
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime import engine_fit
from ray_jobs.runtime.engine_fit import PROCESSOR, fit_engine, processor_flag
from tests import tiny

GIB = 2**30


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Returns the folder of a model whose config says bfloat16 and whose weights file is large (and sparse)."""
    folder = tmp_path_factory.mktemp("models") / "large"
    tiny.llama(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as stream:
            stream.truncate(200 << 20)
    return str(folder)


@pytest.fixture
def cluster(monkeypatch):
    """Sets what the cluster has."""

    def have(flag="avx512_bf16", cpus=(8.0,), gpus=0.0, memory=64 * GIB):
        monkeypatch.setattr(engine_fit, "common_bfloat16_flag", lambda: flag)
        monkeypatch.setattr(engine_fit, "free_cpus", lambda: list(cpus))
        monkeypatch.setattr(engine_fit, "most_memory", lambda: float(memory))
        monkeypatch.setattr("ray_jobs.runtime.cluster.total_gpus", lambda: gpus)

    have()
    return have


@pytest.fixture
def make(tmp_path, large):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(9)))

    def run(name="real", engine=None, pool=None, **changes):
        source = {"name": "a", "model": large, "engine": engine or {}, "pool": pool or {}}
        reward = {"kind": "reward_model", "name": "r", "model": large}
        recipe = {
            "name": name,
            "storage": str(tmp_path / "runs"),
            "corpus": {"path": str(corpus)},
            "sources": [source],
            "target": {"model": large},
            "rewards": [reward, {"kind": "exact_match", "name": "exact"}],
            **changes,
        }
        return FusionRun(parse_recipe(recipe, "the test"))

    return run


def fit(run, num_at_once=1):
    (source,) = run.recipe.sources
    return fit_engine(run, source, run.model(source).path, num_at_once)


def test_an_engine_gets_the_free_cpus_bfloat16_and_memory_and_says_so(make, cluster):
    fitted = fit(make(engine={"kv_cache_gib": 0.5}))
    assert (fitted.model.engine.dtype, fitted.pool.num_cpus, fitted.num_gpus) == ("bfloat16", 8.0, 0.0)
    assert 1.2 * GIB < fitted.needs.memory_bytes < 2.2 * GIB
    assert fitted.needs.lines == ("bfloat16, like its checkpoint: the processor has avx512_bf16; on 8 CPUs",)
    assert fit(make(), num_at_once=3).pool.num_cpus == 2


@pytest.mark.parametrize(
    ("have", "settings", "expected"),
    [
        ({"flag": None}, {}, ("float32", 8.0)),
        ({}, {"engine": {"dtype": "float32"}}, ("float32", 8.0)),
        ({}, {"engine": {"dtype": "float16"}, "pool": {"num_cpus": 3}}, ("float16", 3.0)),
        ({"cpus": ()}, {}, ("bfloat16", 1.0)),
        ({"gpus": 4.0}, {}, ("auto", 1.0)),
    ],
)
def test_the_recipes_own_settings_and_gpus_come_first(make, cluster, have, settings, expected):
    cluster(**have)
    fitted = fit(make(**settings))
    assert (fitted.model.engine.dtype, fitted.pool.num_cpus) == expected
    assert (fitted.needs.memory_bytes > 0) == (not have.get("gpus"))


def test_a_reward_model_is_fitted_and_a_verifier_is_not(make, cluster):
    run = make()
    model, verifier = run.recipe.rewards
    fitted = fit_engine(run, model, run.reward_path(model), 1)
    assert (fitted.model.dtype, fitted.pool.num_cpus) == ("bfloat16", 8.0)
    fitted = fit_engine(run, verifier, run.reward_path(verifier), 1)
    assert (fitted.model, fitted.pool.num_cpus, fitted.needs.memory_bytes) == (verifier, 1.0, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (8.0, 8)),
        ({"num_workers": 3}, (3.0, 3)),
        ({"num_workers": 20}, (8.0, 20)),
        ({"pool": {"num_cpus": 2}}, (2.0, 2)),
    ],
)
def test_a_verifier_that_runs_code_gets_a_cpu_for_each_of_its_workers(make, cluster, settings, expected):
    config = CodeTestsConfig(kind="code_tests", name="code", **settings)
    fitted = fit_engine(make(), config, None, 0)
    assert (fitted.pool.num_cpus, fitted.model.num_workers, fitted.num_gpus) == (*expected, 0.0)


def test_a_run_that_continues_on_another_machine_keeps_its_type(make, cluster):
    assert fit(make()).model.engine.dtype == "bfloat16"
    cluster(flag=None)
    assert fit(make()).model.engine.dtype == "bfloat16"
    cluster(flag=None)
    assert fit(make("other")).model.engine.dtype == "float32"
    cluster()
    assert fit(make("other")).model.engine.dtype == "float32"


def test_a_run_whose_signals_are_older_than_the_choice_continues_in_float32(make, cluster):
    run = make()
    run.collect(run.recipe.sources[0]).folder.write_bytes("shard-00000.parquet", b"")
    assert processor_flag(run) is None
    assert run.folder.exists(PROCESSOR)


@pytest.mark.parametrize("recorded", ["amx_bf16", None])
def test_a_run_that_reuses_signals_uses_their_type(make, cluster, recorded):
    first = make()
    artifact = first.collect(first.recipe.sources[0])
    artifact.folder.write_bytes("shard-00000.parquet", b"")
    artifact.finish([{"rows": 1}], 1.0)
    if recorded:
        first.folder.write_json(PROCESSOR, {"bfloat16": recorded})
    assert processor_flag(make("arm", reuse=["real"])) == recorded


def test_more_memory_than_a_node_has_is_capped_and_said(make, cluster):
    cluster(memory=GIB)
    needs = fit(make()).needs
    assert needs.memory_bytes == GIB
    assert "and the largest node has 1.0 GiB for actors" in needs.lines[1]
