"""A result that is added to a finished recipe is made and reported; nothing else is refused or made again."""

import pytest

from profuser.errors import ProfuserError, UserError
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from profuser.run.stage import Part
from ray_jobs.pipeline import pipeline
from ray_jobs.pipeline.checks import check_fits_recipe, check_reward_categories
from ray_jobs.pipeline.summary import RunSummary
from tests import tiny
from tests.evaluation.packs import write_pack


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')

    def make(**settings):
        recipe = {
            "name": "added",
            "storage": str(tmp_path / "runs"),
            "corpus": {"path": str(tmp_path / "data.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
        }
        return FusionRun(parse_recipe(recipe | settings, "the test"))

    return make


def finished(run):
    for artifact in run.all_artifacts():
        artifact.finish([{"rows": 1}], 1.0)
    return run


def packs(tmp_path, *names):
    return [{"name": name, "path": write_pack(tmp_path / name, name), "num_fewshot": 0} for name in names]


@pytest.mark.parametrize("before", [0, 1])
def test_an_added_benchmark_leaves_only_itself_and_the_report_to_do(make, tmp_path, before):
    benchmarks = packs(tmp_path, "arc_challenge", "winogrande")
    finished(make(evaluate={"benchmarks": benchmarks[:before]}))
    more = make(evaluate={"benchmarks": benchmarks})
    check_fits_recipe(more)
    states = RunSummary(more, None, more.all_artifacts()).content["stages"]
    left = {name for name, entry in states.items() if entry["state"] != "finished"}
    new = [b["name"] for b in benchmarks[before:]]
    assert left == {"report", *(f"benchmarks/{model}/{name}" for model in ("target", "fused") for name in new)}
    assert f"it has a new input benchmarks/fused/{new[0]}" in more.report().changes()


def test_a_removed_benchmark_leaves_only_the_report_to_do(make, tmp_path):
    finished(make(evaluate={"benchmarks": packs(tmp_path, "arc_challenge")}))
    fewer = make()
    check_fits_recipe(fewer)
    assert fewer.report().changes() == [
        f"it no longer has the input benchmarks/{model}/arc_challenge" for model in ("fused", "target")
    ]


def test_a_changed_benchmark_is_refused_in_words_that_are_true(make, tmp_path):
    (benchmark,) = packs(tmp_path, "arc_challenge")
    finished(make(evaluate={"benchmarks": [benchmark]}))
    with pytest.raises(
        UserError, match=r"benchmarks/target/arc_challenge was made with other settings \(benchmark.limit: None -> 3"
    ):
        check_fits_recipe(make(evaluate={"benchmarks": [benchmark | {"limit": 3}]}))


def test_an_added_reward_is_named_as_a_new_input_of_the_choice(make):
    finished(make())
    rewards = [{"kind": "exact_match", "name": "exact"}, {"kind": "last_number", "name": "number"}]
    with pytest.raises(UserError, match=r"select was made with other settings \(it has a new input rewards/number"):
        check_fits_recipe(make(rewards=rewards))


def test_an_older_run_stays_valid_under_the_new_defaults_of_the_vote(make):
    run = finished(make())
    assert "ties" not in run.select().config["select"]["vote"]
    assert "accept_above" not in run.select().config
    strict = make(rewards=[{"kind": "exact_match", "name": "exact", "accept_above": 0.5}])
    assert strict.artifacts("rewards")[0].is_complete()
    with pytest.raises(UserError, match=r"accept_above.exact: 'absent' -> 0.5"):
        strict.select().is_complete()


def test_a_category_that_no_row_has_is_refused_before_the_teachers_pass(make, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b", "kind": "math"}\n')
    corpus = {"path": str(tmp_path / "data.jsonl"), "category_field": "kind"}
    rows = {"row_id": "1", "messages": [], "response": "b", "category": "math", "source_file": "", "source_line": 1}
    reward = {"kind": "last_number", "name": "number"}
    for names, fault in (
        (["math"], None),
        (["maths"], "rewards.number.categories: no training row has the category 'maths'"),
    ):
        run = make(corpus=corpus, rewards=[reward | {"categories": names}])
        run.corpus().write_shard(
            0, run.corpus().schema.empty_table().from_pylist([rows], run.corpus().schema), {"rows": 1}
        )
        if fault is None:
            check_reward_categories(run)
            continue
        with pytest.raises(UserError, match=fault):
            check_reward_categories(run)


@pytest.mark.parametrize(
    ("errors", "kind", "message"),
    [
        ({"b": UserError("no")}, UserError, "1 failed, the other parts are finished.* b: no$"),
        (
            {"b": UserError("no"), "d": ProfuserError("died")},
            ProfuserError,
            "2 failed, the other parts are finished.* b: no; d: died",
        ),
        ({"b": UserError("no"), "c": KeyError("bug")}, KeyError, "bug"),
    ],
)
def test_a_part_of_a_group_that_fails_stops_no_other(monkeypatch, errors, kind, message):
    ran, failures = [], []

    def run_part(tracker, summary, part, draining, kept):
        ran.append(part.name)
        if part.name in errors:
            raise errors[part.name]

    monkeypatch.setattr(pipeline, "_run_part", run_part)
    parts = [Part(name, list, group="one model") for name in "abcd"]
    pipeline._run_job(None, None, parts, failures, lambda: None)
    assert ran == list("abcd")
    with pytest.raises(kind, match=message):
        pipeline._raise_failures(failures)
    errors["e"] = UserError("alone")
    with pytest.raises(UserError, match="alone"):
        pipeline._run_job(None, None, [Part("e", list)], failures, lambda: None)
