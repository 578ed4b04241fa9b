"""Rounds in a run: what each has of its own, in which order it is made, and what it costs."""

from fractions import Fraction

import pytest

from profuser.artifacts.schemas import select_schema
from profuser.recipe.fusing import round_end
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from profuser.run.stage import CorpusSize
from profuser.run.stages import REGISTRY, plan_run
from ray_jobs.pipeline.pipeline import parts
from tests import tiny

SCHEDULE = [
    {"until": 0.5, "inference": 1, "training": 0},
    {"until": 1.0, "inference": 0, "training": 0, "on_policy": 1},
]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    target, other = tiny.llama(folder / "target"), tiny.llama(folder / "other")

    def make(rounds, until=0.1):
        recipe = {
            "name": "rounds",
            "storage": str(folder / "runs"),
            "corpus": {"path": str(folder / "data.jsonl")},
            "sources": [{"name": "own", "model": target}, {"name": "other", "model": other}],
            "target": {"model": target},
            "collect": {"signals": "lazy"},
            "select": {"on_policy": {}},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
            "fuse": {"schedule": [SCHEDULE[0] | {"until": until}, SCHEDULE[1]], "rounds": rounds},
        }
        return FusionRun(parse_recipe(recipe, "the test"))

    return make


def test_each_round_has_its_own_answers_signals_examples_and_model_and_they_are_made_in_turn(make):
    run = make(3)
    own = [(part.name, part.job) for part in REGISTRY["rounds"].parts(run)]
    renewed = ("collect/own", "signals/other", "select", "fuse")
    assert own == [
        ("rounds/1/fuse", "fuse"),
        *((f"rounds/2/{name}", name.split("/")[0]) for name in renewed),
        *((f"rounds/3/{name}", name.split("/")[0]) for name in renewed[:3]),
    ]
    for part in parts(run):
        assert part.artifact.stage == part.name
        assert part.artifact.folder.uri == f"{run.folder.uri}/{part.name}"
    assert set(run.fuse().inputs) == {"rounds/3/select", "rounds/2/fuse"}
    assert set(run.fuse(1).inputs) == {"select"}
    assert {"rounds/2/collect/own", "rounds/2/signals/other", "collect/own", "signals/other"} < set(
        run.select(2).inputs
    )
    # The answers are those of the model of the round before; nothing else depends on it.
    assert set(run.collect(run.recipe.sources[0], 3).inputs) == {"prepare/train", "rounds/2/fuse"}
    assert run.source_path(run.recipe.sources[0], 3) == f"{run.fuse(2).folder.uri}/model"
    assert run.select().fingerprint == make(1).select().fingerprint


def test_a_round_without_weight_on_policy_continues_the_one_before(make):
    run = make(4, until=0.5)
    assert run.recipe.fuse.round_starts == (0, Fraction(1, 2), Fraction(3, 4))
    assert [part.name for part in REGISTRY["rounds"].parts(run) if part.job == "fuse"] == [
        "rounds/1/fuse",
        "rounds/2/fuse",
    ]
    assert [round_end(run.recipe.fuse, 10, number) for number in (1, 2, 3)] == [5, 8, 10]
    tenths = make(10, until=0.7).recipe.fuse.round_starts
    assert tenths == (0, Fraction(7, 10), Fraction(8, 10), Fraction(9, 10))
    early = [SCHEDULE[0] | {"moves_on": {}}, SCHEDULE[1]]
    assert len(run.recipe.fuse.model_validate({"schedule": early, "rounds": 4}).round_starts) == 4


def test_many_rounds_are_listed_in_no_time(make):
    made, run = [], make(40, until=0.01)

    class Counting(FusionRun):
        def _artifact(self, stage, *arguments):
            made.append(stage)
            return super()._artifact(stage, *arguments)

    names = [part.artifact.stage for part in parts(Counting(run.recipe))]
    assert len(names) > 4 * 39
    assert len(made) < 30 * len(names)


def test_one_round_is_the_run_as_it_was(make):
    run = make(1)
    assert not REGISTRY["rounds"].parts(run)
    assert set(run.fuse().inputs) == {"select"}
    assert "rounds" not in run.fuse().config["fuse"]
    assert run.select().schema == select_schema(run.vocab_size("target.model"))


def test_the_plan_prices_every_round(make):
    size = CorpusSize(100, 20.0, 50.0, True)
    one, three = (plan_run(make(rounds), size) for rounds in (1, 3))
    training = [line.tokens for name, line in three.items() if name.endswith("fuse")]
    assert len(training) == 3
    assert sum(training) == pytest.approx(one["fuse"].tokens, rel=0.01)
    assert three["rounds/2/collect/own"] == one["collect/own"]
    # One response of a row instead of three.
    assert three["rounds/3/signals/other"].tokens == pytest.approx(one["signals/other"].tokens / 3)
