"""Recipes: shipped ones are valid, and a mistake gives one line with the key and the fix."""

import re
from pathlib import Path

import pytest
import yaml

from profuser.config import flatten, identity
from profuser.errors import UserError
from profuser.recipe import load_recipe
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.loading import parse_recipe
from profuser.recipe.schedule import PROGRESSIVE
from tests.recipe.schedule_oracle import weights_at

SHIPPED = sorted((Path(__file__).parents[2] / "ray_jobs" / "recipes").glob("*.yaml"))
ARMS = sorted((SHIPPED[0].parent / "arms").glob("*.yaml"))

SMALL = {
    "name": "small",
    "corpus": {"path": "data.jsonl"},
    "sources": [{"name": "a", "model": "models/a"}, {"name": "b", "model": "models/b"}],
    "target": {"model": "models/a"},
    "rewards": [{"kind": "answer_match", "name": "match", "pattern": "#### (.+)"}],
}


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_valid_and_named_like_its_file(file):
    assert load_recipe(file).name == file.stem


@pytest.mark.parametrize("arm", ARMS, ids=lambda file: file.stem)
def test_every_arm_fits_every_shipped_recipe_and_changes_only_its_own_settings(arm):
    settings = changed_keys(yaml.safe_load(arm.read_text()))
    assert arm.read_text().startswith("# ")
    for file in SHIPPED:
        plain, recipe = load_recipe(file), load_recipe(file, arm=arm)
        assert recipe.name == f"{plain.name}-{arm.stem}"
        before, after = (flatten(r.model_dump(mode="json", exclude={"name"})) for r in (plain, recipe))
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert all(any(key == own or key.startswith(f"{own}.") for own in settings) for key in changed)


def changed_keys(tree):
    """Returns the settings of a fragment as dotted paths, of at most two parts."""
    return {".".join(key.split(".")[:2]) for key in flatten(tree)}


def test_the_arms_are_those_that_the_ablation_needs():
    schedules = {arm.stem: load_recipe(SHIPPED[0], arm=arm) for arm in ARMS}
    assert schedules.keys() == {
        *("progressive", "simultaneous", "reversed", "inference-only", "training-only", "sft-gt", "sft-voted"),
        *("average-teacher", "linear-ramp", "cosine-ramp", "competence", "fusellm"),
    }
    assert schedules["progressive"].fuse.schedule == PROGRESSIVE
    used = {
        name: tuple(
            any(weights) for weights in zip(*(weights_at(r.fuse.schedule, n / 9) for n in range(9)), strict=True)
        )
        for name, r in schedules.items()
    }
    assert [name for name, modes in used.items() if modes == (True, False, False, False)] == [
        "inference-only",
        "sft-voted",
    ]
    assert [name for name, modes in used.items() if modes == (False, True, False, False)] == [
        "fusellm",
        "sft-gt",
        "training-only",
    ]
    assert [name for name, r in schedules.items() if r.fuse.beta == 0] == ["sft-gt", "sft-voted"]
    assert [name for name, r in schedules.items() if r.select.training_teacher == "average"] == ["average-teacher"]


def test_the_papers_recipe_has_its_trio_schedule_and_metric():
    recipe = load_recipe(next(file for file in SHIPPED if file.stem == "profuser-7b"))
    assert [s.model.split("/")[1].lower() for s in recipe.sources] == [
        "vicuna-7b-v1.5",
        "llama-2-7b-chat-hf",
        "mpt-7b-8k-chat",
    ]
    assert recipe.is_target(recipe.sources[0])
    assert [(p.inference, p.training) for p in recipe.fuse.schedule] == [(1, 0), (0.1, 1)]
    assert recipe.select.training_metric == "nats_per_token"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fuse.optimiser.learning_rate=1", "did you mean 'optimizer'?"),
        ("sources.a.modle=x", "did you mean 'model'?"),
        ("rewards.match.patern=x", "did you mean 'pattern'?"),
        ("collect.top_k=0", "collect.top_k: input should be greater than or equal to 1 (got '0')"),
        ("rewards.match.pattern=(", "not a regular expression"),
        ("rewards.match.pattern=abc", "needs a group"),
        (
            "rewards.match={kind: last_number, name: n, patern: x}",
            "known here: accept_above, categories, except_categories, kind, name, pool, tolerance, weight",
        ),
        ("rewards.match={kind: last_number, name: n, tolerence: 1}", "did you mean 'tolerance'?"),
        (
            "rewards.match={kind: guess, name: n}",
            "'reward_model', 'last_number', 'exact_match', 'answer_match', 'callable'",
        ),
        ("rewards.match={kind: callable, name: n, path: module.function}", "path: string should match pattern"),
        ("rewards.match.weight=-1", "weight: input should be greater than or equal to 0"),
        ("rewards.match.weight=0", "every weight is 0"),
        ("rewards.match.engine={kind: vllm}", "engine: no such setting"),
        ("sources.1.name=a", "sources: the name 'a' is used twice"),
        ("template={kind: jinja, text: '{% for %}'}", "text: line 1: Expected an expression"),
        ('template={kind: jinja, text: "{{ bos_token }}\\n{{ 1 }"}', "text: line 2: "),
        ("fuse.schedule=[{until: 0.5, inference: 1, training: 0}]", "the last piece must have until: 1.0"),
        (
            "fuse.schedule=[{until: 1, inference: 1, training: 0, moves_on: {}}]",
            "schedule[0]: the last piece takes no `moves_on`",
        ),
        (
            "fuse.schedule=[{until: 1, inference: 1, training: 0, moves_on: {window: 9}}]",
            "did you mean 'window_steps'?",
        ),
        ("sources.c.model=x", "no item 'c'; there are: a, b"),
        ("fuse.batch_tokens", "expected key.path=value"),
        ("name.x=1", "'name' is a value"),
        ("corpus={}", "corpus.path: is required"),
        ("plan.price_per_device_hour=-1", "price_per_device_hour: input should be greater than or equal to 0"),
        ("plan.prize_per_device_hour=1", "did you mean 'price_per_device_hour'?"),
        ("plan.accelerators=[{accelerator: H100}]", "price_per_device_hour: is required"),
        (
            "plan.accelerators=[{accelerator: T4, price_per_device_hour: 1}, {accelerator: T4, price_per_device_hour: 2}]",
            "accelerators: 'T4' has two prices",
        ),
        ("sources.a.pool={min_actors: 3, max_actors: 2}", "min_actors=3 is more than max_actors=2"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_the_fix(small, override, expected):
    with pytest.raises(UserError) as caught:
        load_recipe(small, [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_preference_needs_pairs_and_several_answers_to_make_them_of(small):
    pieces = "fuse.schedule=[{until: 1, inference: 1, training: 0, preference: 0.5}]"
    with pytest.raises(UserError, match=r"preference needs pairs of answers; set select\.preference"):
        load_recipe(small, [pieces])
    with pytest.raises(UserError, match="a source that answers once has no pair"):
        load_recipe(small, [pieces, "select.preference={}"])
    several = ["collect.samples_per_source=2", "collect.generation.temperature=0.7"]
    assert load_recipe(small, [pieces, "select.preference={}", *several]).select.preference.within == "source"
    recipe = load_recipe(small, [pieces, "select.preference.within=row"])
    assert identity(recipe.fuse)["schedule"][0]["preference"] == 0.5
    assert not {"preference"} & {*identity(load_recipe(small).select), *identity(load_recipe(small).fuse)}
    assert "preference" not in identity(load_recipe(small).fuse)["schedule"][0]


def test_on_policy_needs_the_targets_answers_and_a_second_pass(small):
    pieces = "fuse.schedule=[{until: 1, inference: 1, training: 0, on_policy: 0.5}]"
    lazy = ["select.on_policy={}", "collect.signals=lazy"]
    with pytest.raises(
        UserError, match=r"on_policy needs the target's answers under the teachers; set select\.on_policy"
    ):
        load_recipe(small, [pieces])
    with pytest.raises(UserError, match=r"stage signals; set collect\.signals: lazy"):
        load_recipe(small, [pieces, "select.on_policy={}"])
    with pytest.raises(UserError, match="the target must answer; name it as a source too"):
        load_recipe(small, [pieces, *lazy, "target.model=elsewhere"])
    recipe = load_recipe(small, [pieces, *lazy, "fuse.divergence.on_policy=jsd"])
    assert recipe.fuse.divergence.on_policy.kind == "jsd"
    assert recipe.fuse.divergence.training.kind == "forward_kl"
    assert "on_policy" not in identity(load_recipe(small).select)
    assert "on_policy" not in identity(load_recipe(small, ["fuse.divergence=jsd"]).fuse)["divergence"]


def test_an_exact_condition_needs_lazy_signals(small):
    with pytest.raises(UserError, match=r"condition: exact needs the stage signals; set collect\.signals: lazy"):
        load_recipe(small, ["select.condition=exact"])
    assert load_recipe(small, ["select.condition=exact", "collect.signals=lazy"]).select.condition == "exact"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("collect.signals=lazy", "select.training_teacher: average needs the distributions of all sources"),
        ("sources.a.name=average", "no source may be named 'average'"),
    ],
)
def test_an_average_teacher_needs_eager_signals_and_reserves_its_name(small, override, expected):
    assert load_recipe(small, ["select.training_teacher=average"]).select.training_teacher == "average"
    with pytest.raises(UserError, match=expected):
        load_recipe(small, ["select.training_teacher=average", override])


def test_overrides_reach_mappings_lists_and_new_sections(small):
    recipe = load_recipe(small, ["sources.b.engine.max_model_len=99", "fuse.optimizer.learning_rate=1.0e-3", "seed=7"])
    assert recipe.sources[1].engine.max_model_len == 99
    assert recipe.fuse.optimizer.learning_rate == 1e-3
    assert recipe.seed == 7


def test_execution_settings_are_not_part_of_the_identity(small):
    plain = identity(load_recipe(small))
    moved = load_recipe(
        small,
        [
            "storage=/elsewhere",
            "sources.a.pool.max_actors=9",
            "fuse.workers.num_workers=8",
            "fuse.micro_batch_tokens=1",
            "plan.price_per_device_hour=2.5",
        ],
    )
    assert identity(moved) == plain
    assert identity(load_recipe(small, ["collect.top_k=11"])) != plain


def test_an_accelerators_own_price_overrides_the_default(small):
    prices = "{currency: EUR, price_per_device_hour: 2, accelerators: [{accelerator: H100, price_per_device_hour: 4}]}"
    recipe = load_recipe(small, [f"plan={prices}", "sources.a.pool.accelerator_type=H100"])
    assert [recipe.plan.price(source.pool) for source in recipe.sources] == [4, 2]
    assert load_recipe(small).plan.price(recipe.sources[0].pool) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a: [", "not YAML"), (b"- 1", "expected a mapping"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_an_unreadable_file_is_named(tmp_path, content, expected):
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "inference", "training"),
    [
        ("jsd", ("jsd", 0.5), ("jsd", 0.5)),
        ({"kind": "skew"}, ("skew", 0.1), ("skew", 0.1)),
        ({"inference": "reverse_kl", "training": {"kind": "jsd", "alpha": 0.2}}, ("reverse_kl", 0.5), ("jsd", 0.2)),
        ({"training": "reverse_kl"}, ("forward_kl", 0.5), ("reverse_kl", 0.5)),
    ],
)
def test_a_divergence_is_for_both_modes_or_for_each(value, inference, training):
    found = FuseConfig.model_validate({"divergence": value}).divergence
    assert [(each.kind, each.weight) for each in (found.inference, found.training)] == [inference, training]


def test_recipes_without_a_divergence_have_their_old_fingerprint():
    assert identity(FuseConfig()) == identity(FuseConfig.model_validate({"divergence": "forward_kl"}))
    assert "divergence" not in identity(FuseConfig())


ENDPOINT = {"base_url": "http://big:8000/v1/", "model": "acme/big", "tokenizer": "models/a"}


def with_source(source):
    return parse_recipe(SMALL | {"sources": [*SMALL["sources"], {"name": "big", **source}]}, "the test")


def test_where_an_endpoint_is_and_how_it_is_asked_are_not_its_identity():
    plain = with_source({"endpoint": ENDPOINT})
    moved = {"base_url": "https://other/v1", "key_env": "KEY", "concurrency": 64, "requests_per_minute": 60}
    moved |= {"cost": {"input_per_million": 1, "output_per_million": 2}, "tokenizer": "elsewhere/a"}
    assert identity(with_source({"endpoint": ENDPOINT | moved})) == identity(plain)
    assert plain.sources[-1].endpoint.base_url == "http://big:8000/v1"
    for changed in ({"model": "acme/small"}, {"options": {"reasoning_effort": "low"}}):
        assert identity(with_source({"endpoint": ENDPOINT | changed})) != identity(plain)
    # Recipes without endpoints keep the identity that they had before there were any.
    assert "endpoint" not in identity(plain)["sources"][0]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "sources.2: give either a model or an endpoint"),
        ({"model": "models/b", "endpoint": ENDPOINT}, "give either a model or an endpoint"),
        ({"endpoint": ENDPOINT, "pool": {"max_actors": 2}}, "raise endpoint.concurrency instead of pool.max_actors"),
        ({"endpoint": ENDPOINT | {"options": {"seed": 1}}}, "'seed' is set by the recipe itself"),
        ({"endpoint": ENDPOINT | {"base_url": "big:8000"}}, "sources.2.endpoint.base_url: string should match pattern"),
        ({"endpoint": ENDPOINT | {"base_url": "https://me:secret@big/v1"}}, "name its variable in key_env"),
        ({"endpoint": {"base_url": "http://big/v1"}}, "sources.2.endpoint.model: is required"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused(source, words):
    with pytest.raises(UserError, match=re.escape(words)):
        with_source(source)


def test_a_target_behind_an_endpoint_is_refused():
    with pytest.raises(UserError, match="target: the target is trained, so its weights are needed: give model, not"):
        parse_recipe(SMALL | {"target": {"endpoint": ENDPOINT}}, "the test")


def test_endpoints_without_a_tokenizer_alone_cannot_teach_the_ground_truth():
    sources = [{"name": "big", "endpoint": {"base_url": "http://big/v1", "model": "acme/big"}}]
    with pytest.raises(UserError, match=r"none can teach the ground truth; set endpoint.tokenizer, or a fuse.schedule"):
        parse_recipe(SMALL | {"sources": sources}, "the test")
    voted = {"schedule": [{"until": 1.0, "inference": 1.0, "training": 0.0}]}
    assert parse_recipe(SMALL | {"sources": sources, "fuse": voted}, "the test").sources[0].lacks_tokenizer
