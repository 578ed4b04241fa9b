"""The date of a run: fixed when it begins, in the fingerprint of what shows it, and inherited by a run that reuses another."""

import datetime
import json

import pytest
from transformers import AutoTokenizer

from profuser.corpus import Message, render_prompt
from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.run import beginning
from profuser.run.beginning import begin
from profuser.run.finding import RECIPE
from profuser.run.fusion_run import FusionRun
from tests import tiny

CLOCK = tiny.CHATML + "{{ strftime_now('%d %b %Y') }}"


@pytest.fixture
def today(monkeypatch):
    """Returns a function that sets the day."""

    def set_day(day):
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(day)

        monkeypatch.setattr(beginning, "date", Day)

    return set_day


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a model whose template writes a date, and one whose template does not."""
    plain, dated = (tiny.neox(tmp_path_factory.mktemp(name)) for name in ("plain", "dated"))
    tokenizer = AutoTokenizer.from_pretrained(dated)
    tokenizer.chat_template = CLOCK
    tokenizer.save_pretrained(dated)
    return plain, dated


@pytest.fixture
def make(models, tmp_path):
    plain, dated = models

    def make(name="one", **settings):
        (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
        judge = {"kind": "reward_model", "name": "judge", "model": plain}
        recipe = {
            "name": name,
            "storage": str(tmp_path / "runs"),
            "corpus": {"path": str(tmp_path / "data.jsonl")},
            "sources": [{"name": "plain", "model": plain}, {"name": "dated", "model": dated}],
            "target": {"model": plain},
            "rewards": [judge],
        }
        return FusionRun(parse_recipe(recipe | settings, "the test"))

    return make


def prompt(run, name):
    (source,) = (each for each in run.recipe.sources if each.name == name)
    tokenizer = AutoTokenizer.from_pretrained(source.model)
    return tokenizer.decode(render_prompt(tokenizer, [Message("user", "a")], run.template(source)))


def collected(run):
    return {source.name: run.collect(source) for source in run.recipe.sources}


def test_a_run_shows_the_date_on_which_it_began_whenever_it_is_resumed(make, today):
    today("2026-03-05")
    first = begin(make())
    today("2026-03-06")
    resumed = begin(make())
    assert prompt(first, "dated") == prompt(resumed, "dated")
    assert prompt(resumed, "dated").endswith("05 Mar 2026")
    manifest = collected(resumed)["dated"].finish([{"rows": 1}], 1.0)
    assert manifest.config["template"] == {"kind": "own", "date": "2026-03-05"}
    assert collected(make())["dated"].is_complete()


def test_the_date_is_part_of_what_shows_it_alone(make, today):
    today("2026-03-05")
    one = collected(begin(make("one")))
    today("2026-03-06")
    two = collected(begin(make("two")))
    before = collected(make("three"))
    assert one["plain"].fingerprint == two["plain"].fingerprint == before["plain"].fingerprint
    assert len({each["dated"].fingerprint for each in (one, two, before)}) == 3
    text = {"kind": "jinja", "text": CLOCK}
    shared = begin(make("four", template=text))
    assert {artifact.config["template"]["date"] for artifact in collected(shared).values()} == {"2026-03-06"}


def test_a_run_takes_the_date_of_the_one_that_it_reuses_or_of_its_recipe(make, today):
    today("2026-03-05")
    base = begin(make("base"))
    today("2026-03-06")
    arm = begin(make("arm", reuse=["nothing", "base"]))
    assert collected(arm)["dated"].fingerprint == collected(base)["dated"].fingerprint
    given = begin(make("given", template={"kind": "own", "date": "2020-02-09"}))
    assert prompt(given, "dated").endswith("09 Feb 2020")


def test_a_run_from_before_dates_were_kept_stays_as_it_is(make, today):
    today("2026-03-05")
    old = make("old")
    before = collected(old)["dated"].fingerprint
    old.folder.write_json(RECIPE, {})
    assert collected(begin(old))["dated"].fingerprint == before
    assert json.loads((old.folder / "").read_bytes(RECIPE)) == {}


def test_thinking_is_kept_for_the_target_too(make):
    keep = {"kind": "own", "thinking": "keep"}
    assert make(template=keep).recipe.template.thinking == "keep"
    with pytest.raises(UserError, match="thinking of plain is kept, but the target's template closes thinking"):
        make(template=keep, target={"model": "x", "template": {"kind": "own"}})


def test_a_source_a_target_and_a_judge_may_have_templates_of_their_own(make):
    own = {"kind": "own", "arguments": {"enable_thinking": False}, "thinking": "off"}
    run, plain = make("one", template={"kind": "jinja", "text": tiny.CHATML}), make("one")
    tree = run.recipe.model_dump(mode="json")
    tree["sources"][1]["template"] = tree["rewards"][0]["template"] = own
    other = FusionRun(parse_recipe(tree, "the test"))
    assert other.template(other.recipe.sources[0]) == run.recipe.template
    assert other.template(other.recipe.sources[1]).arguments == {"enable_thinking": False}
    assert collected(run)["plain"].fingerprint == collected(other)["plain"].fingerprint
    assert collected(run)["dated"].fingerprint != collected(other)["dated"].fingerprint
    assert collected(run)["dated"].fingerprint != collected(plain)["dated"].fingerprint
    assert other.rewards(other.recipe.rewards[0]).config["reward"]["template"] == own
    assert "template" not in run.rewards(run.recipe.rewards[0]).config["reward"]
