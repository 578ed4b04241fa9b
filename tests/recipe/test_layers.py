"""A recipe over its base: mappings are merged, everything else is replaced, and an error is one line."""

import pytest
import yaml

from profuser.errors import UserError
from profuser.recipe import find_arm, load_recipe
from profuser.recipe.layers import merge
from tests.recipe.test_recipe import SHIPPED, SMALL

FOLDER = SHIPPED[0].parent


def written(folder, stem, /, **content):
    """Writes a recipe file."""
    file = folder / f"{stem}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def base(tmp_path):
    changes = {
        "fuse": {"beta": 0.5, "duration": {"kind": "steps", "value": 7}},
        "template": {"kind": "jinja", "text": "x"},
    }
    return written(tmp_path, "small", **SMALL | changes)


def test_a_recipe_holds_only_its_differences(base, tmp_path):
    schedule = [{"until": 1.0, "inference": 1, "training": 0}]
    fuse = {"batch_tokens": 99, "schedule": schedule, "optimizer": {"beta1": 0.8}}
    over = load_recipe(written(tmp_path / "deeper", "over", name="over", base="../small.yaml", fuse=fuse))
    plain = load_recipe(base)
    assert over.sources == plain.sources
    assert (over.fuse.beta, over.fuse.duration.value, over.fuse.batch_tokens) == (0.5, 7, 99)
    assert over.fuse.optimizer == plain.fuse.optimizer.model_copy(update={"beta1": 0.8})
    assert len(over.fuse.schedule) == 1


def test_lists_and_sections_of_another_kind_are_replaced(base, tmp_path):
    changes = {
        "rewards": [{"kind": "last_number", "name": "number"}],
        "fuse": {"duration": {"kind": "epochs"}},
        "template": {"kind": "own"},
    }
    over = load_recipe(written(tmp_path, "over", name="over", base="small.yaml", **changes))
    assert [reward.name for reward in over.rewards] == ["number"]
    assert over.fuse.duration.kind == "epochs"
    assert over.fuse.duration.value == 3
    assert over.template.kind == "own"


def test_another_engine_kind_keeps_the_other_settings_of_the_base():
    under = {"target": {"model": "m", "engine": {"kind": "vllm", "max_model_len": 99}}}
    merged = merge(under, {"target": {"engine": {"kind": "transformers"}}})
    assert merged["target"] == {"model": "m", "engine": {"kind": "transformers", "max_model_len": 99}}
    assert under["target"]["engine"]["kind"] == "vllm"


def test_a_base_may_be_a_shipped_recipe_and_have_a_base_of_its_own(tmp_path):
    written(tmp_path, "demo", name="demo", base="demo", fuse={"beta": 0.3})
    top = written(tmp_path, "top", name="top", base="demo.yaml", seed=5)
    recipe, shipped = load_recipe(top, shipped=FOLDER), load_recipe("demo", shipped=FOLDER)
    assert (recipe.name, recipe.seed, recipe.fuse.beta) == ("top", 5, 0.3)
    assert recipe.corpus == shipped.corpus
    assert recipe.fuse.duration == shipped.fuse.duration


def test_an_arm_overrides_the_recipe_and_settings_override_the_arm(base):
    arm = find_arm("sft-gt", FOLDER)
    recipe = load_recipe(base, arm=arm)
    assert (recipe.name, recipe.fuse.beta, recipe.fuse.duration.value) == ("small-sft-gt", 0, 7)
    recipe = load_recipe(base, ["fuse.beta=0.7", "name=mine"], arm=arm)
    assert (recipe.name, recipe.fuse.beta) == ("mine", 0.7)


def test_the_name_is_not_inherited_from_the_base(base, tmp_path):
    with pytest.raises(UserError, match="name: is required"):
        load_recipe(written(tmp_path, "over", base="small.yaml"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"base": "nowhere.yaml"},
            "base 'nowhere.yaml': no such file; shipped recipes: alpaca-lab, demo, open-trio, open-trio-demo, profuser-7b",
        ),
        ({"base": "over.yaml"}, "base 'over.yaml' leads back to "),
        ({"base": "middle.yaml"}, "middle.yaml: base 'over.yaml' leads back to "),
        ({"base": ["demo"]}, "base: expected the name of a shipped recipe or a path"),
        ({"base": "broken.yaml"}, "broken.yaml: not YAML"),
        ({"base": "demo", "fuse": {"betta": 1}}, "fuse.betta: no such setting; did you mean 'beta'?"),
    ],
)
def test_an_invalid_base_is_reported_in_one_line(tmp_path, content, expected):
    written(tmp_path, "middle", name="middle", base="over.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, "over", name="over", **content), shipped=FOLDER)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
