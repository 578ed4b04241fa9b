"""Which settings invalidate cached scores, and which only the vote."""

import pytest

from profuser.errors import UserError
from profuser.recipe.llm_judge import RubricConfig
from profuser.recipe.loading import parse_recipe
from profuser.rewards.rubrics import RUBRICS
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


def test_a_rubric_decides_the_scores_of_a_generative_judge_and_its_address_does_not(run_with, model, monkeypatch):
    plain = run_with(kind="llm_judge", model=model)
    assert fingerprints(plain) == fingerprints(run_with(kind="llm_judge", model=model, engine={"max_num_seqs": 3}))
    assert "Judge helpfulness" in plain.artifacts("rewards")[0].config["reward"]["rubric"]["prompt"]
    others = ({"rubric": "correctness"}, {"grades": [1, 2, 3]}, {"rubric": {"prompt": "{{ response }}"}})
    marks = {fingerprints(run_with(kind="llm_judge", model=model, **changes))[0] for changes in ({}, *others)}
    assert len(marks) == 4
    monkeypatch.setitem(RUBRICS["helpfulness"], "pointwise", RubricConfig(prompt="Another text: {{ response }}"))
    assert fingerprints(run_with(kind="llm_judge", model=model))[0] not in marks
    served = [
        {"base_url": f"http://{host}/v1", "model": name, "concurrency": number}
        for host, name, number in (("one", "big", 1), ("two", "big", 2), ("two", "small", 2))
    ]
    first, moved, other = (fingerprints(run_with(kind="llm_judge", endpoint=endpoint)) for endpoint in served)
    assert first == moved
    assert first[0] != other[0]


def test_a_missing_function_is_reported_before_the_run_starts(run_with):
    run = run_with(kind="callable", path="nowhere.at_all:judge")
    with pytest.raises(UserError, match=r"rewards.judge.path: nowhere.at_all:judge cannot be imported: .*PYTHONPATH"):
        run.check_inputs()
    with pytest.raises(UserError, match="cannot be imported"):
        run.artifacts("rewards")
