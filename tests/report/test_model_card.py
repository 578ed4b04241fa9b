"""The fused model's card is valid for the Hub, complete, and reveals nothing about the machine."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from profuser.artifacts.artifact import Manifest
from profuser.config import identity
from profuser.recipe import load_recipe
from profuser.recipe.loading import parse_recipe
from profuser.report.facts import RunFacts, StageFact
from profuser.report.model_card import model_card
from tests.report import made_up

RECIPES = sorted((Path(__file__).parents[2] / "ray_jobs" / "recipes").glob("*.yaml"))
STAGES = (
    StageFact("prepare/train", "finished", 1.0, {"rows": 1800, "quarantined": 23}),
    StageFact("prepare/heldout", "finished", 0.0, {"rows": 300}),
    StageFact("select", "finished", 1.0, {"examples": 3540, "tokens": 61000}),
    StageFact("fuse", "finished", 9.0, {"steps": 224, "tokens": 402000}, {"heldout_bits_per_byte_training": 0.41}),
)


def recipe(model="lab://sources/mpt", corpus="lab://corpus/train.jsonl.gz", target="meta-llama/Llama-2-7b"):
    sources = [{"name": "a", "model": target, "revision": "main"}, {"name": "b", "model": model, "revision": None}]
    return made_up.recipe() | {"sources": sources, "target": sources[0], "corpus": {"path": corpus, "heldout": None}}


def manifest(stage, **config):
    return Manifest(stage, f"fingerprint of {stage}", config, {}, {}, commit="986e58412ab0")


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def recipe_of(card):
    return yaml.safe_load(card.split("yaml\n")[-1].split("\n```")[0])


def test_the_front_matter_names_base_models_and_datasets():
    card = model_card(made_up.facts(recipe=recipe("mosaicml/mpt-7b", "hub:tatsu-lab/alpaca:train")))
    data = ModelCard(card).data
    assert data.base_model == ["meta-llama/Llama-2-7b", "mosaicml/mpt-7b"]
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["tatsu-lab/alpaca"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert "license" not in front_matter(card)


def test_only_models_on_the_hub_are_base_models():
    assert front_matter(model_card(made_up.facts(recipe=recipe("/data/mpt"))))["base_model"] == [
        "meta-llama/Llama-2-7b"
    ]
    assert not {"base_model", "base_model_relation", "datasets"} & front_matter(model_card(made_up.facts())).keys()


def test_the_card_contains_no_local_path():
    card = model_card(made_up.facts(recipe=recipe("/home/somebody/mpt", "~/somebody/rows.jsonl", "../somebody/llama")))
    assert "somebody" not in card
    assert "| source `b` | `mpt` |" in card
    assert "| corpus | `rows.jsonl` |" in card


def test_lineage_has_digests_fingerprints_and_versions():
    manifests = [
        manifest("prepare/train", digests={"corpus": "c0"}),
        manifest("collect/b", model="b0"),
        manifest("fuse", target="a0"),
    ]
    card = model_card(made_up.facts(recipe=recipe()), manifests)
    assert "| target | `meta-llama/Llama-2-7b` | `main` | `a0` |" in card
    assert "| source `b` | `lab://sources/mpt` | - | `b0` |" in card
    assert "| corpus | `lab://corpus/train.jsonl.gz` | - | `c0` |" in card
    for each in manifests:
        assert f"| `{each.stage}` | `{each.fingerprint}` | `986e58412ab0` |" in card
    assert "torch 2.13.0" in card
    assert "commit `986e58412ab0+`" in card
    assert "source `llama`, the target itself" in model_card(made_up.facts())


def test_data_training_and_results_are_counted():
    card = model_card(made_up.facts(stages=STAGES))
    for text in (
        "1,800 rows",
        "23 were refused",
        "3,540 examples",
        "224 updates",
        "held out of training it reached 0.410 bits per byte",
    ):
        assert text in card
    assert "Bits per byte fell to 0.400 from 0.600" in card
    assert "| +20.0 |" in card


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipe_in_the_card_makes_the_same_model(file):
    whole = load_recipe(file)
    shown = recipe_of(model_card(made_up.facts(recipe=whole.model_dump(mode="json"))))
    assert identity(parse_recipe(shown, "the card")) == identity(whole)


def test_failed_benchmarks_are_named_without_the_reason_which_may_hold_a_path():
    failures = {"benchmarks/fused/gsm8k": "/scratch/me/model: no room", "benchmarks/target/mmlu": "killed"}
    card = model_card(made_up.measured(failures=failures))
    assert "Not measured: gsm8k of fused, mmlu of target (llama)." in card
    assert "/scratch" not in card
    assert "Not measured" not in model_card(made_up.measured())


def test_untrusted_text_is_escaped():
    template = {"kind": "jinja", "text": "```\n---\n</details>{{ x }}"}
    scores = made_up.scores(skills=("<img src=x>", "a|b"))
    card = model_card(made_up.facts(recipe=made_up.recipe() | {"template": template}, scores=scores))
    assert yaml.safe_load(card.split("````yaml\n")[1].split("````")[0])["template"] == template
    assert "<img" not in card
    assert "| a\\|b |" in card


def test_many_categories_are_truncated():
    card = model_card(made_up.facts(scores=made_up.scores(skills=tuple(f"subject {i}" for i in range(60)))))
    assert "48 more categories" in card
    assert len(card.splitlines()) < 130


def test_an_empty_run_has_a_card():
    card = model_card(RunFacts(name="empty", recipe={}))
    assert "Not evaluated." in card
    assert ModelCard(card).data.tags[0] == "profuser"
