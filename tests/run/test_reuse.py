"""Reuse between runs: one pass over the teachers for all arms of an experiment."""

import pytest

from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.pipeline.pipeline import delete_stages
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model, tmp_path):
    def make(name, **settings):
        (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
        recipe = {
            "name": name,
            "storage": str(tmp_path),
            "corpus": {"path": str(tmp_path / "data.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
        }
        return FusionRun(parse_recipe(recipe | settings, "the test"))

    return make


def test_a_finished_artifact_with_the_same_settings_is_reused_in_place(make):
    base, arm = make("base"), make("arm", reuse=["base"], fuse={"seed": 1})
    source = arm.recipe.sources[0]
    assert "/arm/" in arm.collect(source).folder.uri
    base.collect(source).finish([{"rows": 1}], 1.0)
    base.fuse().finish([], 1.0)
    assert arm.collect(source).is_complete()
    assert "/base/" in arm.collect(source).folder.uri
    assert "/arm/" in arm.fuse().folder.uri, "its seed differs"
    assert "/arm/" in arm.corpus().folder.uri, "no run has finished it"


def test_a_runs_own_artifacts_take_precedence_and_other_settings_are_not_reused(make):
    base, arm = make("base"), make("arm", reuse=["base"])
    other = make("other", reuse=["base"], collect={"top_k": 3})
    for run in (arm, base):
        run.collect(run.recipe.sources[0]).finish([{"rows": 1}], 1.0)
    assert "/arm/" in arm.collect(arm.recipe.sources[0]).folder.uri
    assert "/other/" in other.collect(other.recipe.sources[0]).folder.uri


def test_redoing_another_runs_artifact_is_refused_and_deletes_nothing(make):
    base, arm = make("base"), make("arm", reuse=["base"])
    base.collect(base.recipe.sources[0]).finish([{"rows": 1}], 1.0)
    with pytest.raises(UserError, match="belongs to another run"):
        delete_stages(arm, ["collect"])
    assert base.collect(base.recipe.sources[0]).is_complete()


def test_the_training_seed_is_the_recipes_unless_it_is_set(make):
    assert make("a", seed=3).recipe.training_seed == 3
    assert make("b", seed=3, fuse={"seed": 0}).recipe.training_seed == 0


def test_runs_without_a_condition_in_their_fingerprints_stay_valid(make):
    """Their fingerprints had no `condition`; the target's tokenizer counts for `signals` only if it determines the requests."""
    lazy = {"signals": "lazy"}
    before, exact = make("a", collect=lazy), make("a", collect=lazy, select={"condition": "exact"})
    source = before.recipe.sources[0]
    for made in (before.signals(source), before.select()):
        assert "condition" not in made.config["select"]
    assert "tokenizer" not in before.signals(source).config
    assert exact.signals(source).config["select"]["condition"] == "exact"
    assert exact.signals(source).config["tokenizer"] == exact.select().config["tokenizer"]
    assert set(exact.signals(source).schema.names) > set(before.signals(source).schema.names)
