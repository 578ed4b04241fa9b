"""Which settings invalidate cached scores, and which only the vote."""

import pytest

from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def run_with(tmp_path, model, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"question": "What is 1?", "answer": "It is 1."}\n')

    def make(**reward):
        tree = {
            "name": "small",
            "storage": str(tmp_path / "runs"),
            "corpus": {"path": str(tmp_path / "data.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"name": "judge", **reward}],
        }
        return FusionRun(parse_recipe(tree, "small"))

    return make


def fingerprints(run):
    return run.artifacts("rewards")[0].fingerprint, run.select().fingerprint


def test_a_weight_changes_the_vote_but_no_score(run_with):
    plain, heavy = run_with(kind="last_number"), run_with(kind="last_number", weight=2)
    assert fingerprints(plain)[0] == fingerprints(heavy)[0]
    assert fingerprints(plain)[1] != fingerprints(heavy)[1]


def test_the_rule_changes_the_fingerprints_and_the_pool_does_not(run_with):
    plain, pooled = run_with(kind="last_number"), run_with(kind="last_number", pool={"max_actors": 4})
    assert fingerprints(plain) == fingerprints(pooled)
    assert fingerprints(plain)[0] != fingerprints(run_with(kind="last_number", tolerance=0.1))[0]


def test_editing_the_users_function_invalidates_the_scores(run_with, tmp_path):
    file = tmp_path / "edited_rewards.py"
    file.write_text("def judge(messages, answer, response): return 1")
    run = run_with(kind="callable", path="edited_rewards:judge")
    run.check_inputs()
    before = fingerprints(run)
    file.write_text("def judge(messages, answer, response): return 2")
    assert fingerprints(run)[0] != before[0]


def test_a_missing_function_is_reported_before_the_run_starts(run_with):
    run = run_with(kind="callable", path="nowhere.at_all:judge")
    with pytest.raises(UserError, match=r"rewards.judge.path: nowhere.at_all:judge cannot be imported: .*PYTHONPATH"):
        run.check_inputs()
    with pytest.raises(UserError, match="cannot be imported"):
        run.artifacts("rewards")
