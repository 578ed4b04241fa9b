"""The shipped laboratory is as good as stated, and a build gives models as good as the shipped ones."""

import gzip
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from profuser.errors import UserError
from profuser.lab.build import build_lab, build_sources_from_corpus, build_specialist
from profuser.lab.items import Item
from profuser.lab.reward_models import REWARDS, score
from profuser.lab.skills import SPECIALTIES, draw_rows
from profuser.lab.specialists import exact_match
from profuser.models.lab_paths import assets_path

MAX_BYTES = 12_000_000
OWN, OTHERS = 0.7, 0.5
RIGHT_VOTES = 0.85


def heldout():
    with gzip.open(assets_path() / "corpus" / "heldout.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    return [Item(row["skill"], row["instruction"], row["output"], row["answer"]) for row in rows]


def check_specialist(name, measured):
    own, others = SPECIALTIES[name], [skill for skill in measured if skill not in SPECIALTIES[name]]
    assert min(measured[skill] for skill in own) >= OWN, measured
    worst_own = min(measured[skill] for skill in own)
    assert max(measured[skill] for skill in others) <= OTHERS * worst_own, measured


def load(kind, folder):
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def share_of_right_votes(lab):
    """Returns how often the majority prefers the correct answer to that of another question of the same skill."""
    items = heldout()[:300]
    wrong = draw_rows("train", 1200, seed=3)
    others = {item.skill: [other for other in wrong if other.skill == item.skill] for item in items}
    bad = [next(o for o in others[i.skill][n % 100 :] if o.answer != i.answer) for n, i in enumerate(items)]
    votes = torch.zeros(len(items))
    for name in REWARDS:
        model, tokenizer = load(AutoModelForSequenceClassification, lab / "rewards" / name)
        with torch.inference_mode():
            good_scores = score(model, tokenizer, [(i.instruction, i.terse) for i in items])
            bad_scores = score(model, tokenizer, [(i.instruction, b.terse) for i, b in zip(items, bad, strict=True)])
        votes += (good_scores > bad_scores).float()
    return float((votes >= 2).float().mean())


def test_the_shipped_laboratory_is_small():
    assert sum(file.stat().st_size for file in assets_path().rglob("*") if file.is_file()) <= MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIALTIES)
def test_a_shipped_specialist_is_good_only_at_its_own_skills(name):
    model, tokenizer = load(AutoModelForCausalLM, assets_path() / "sources" / name)
    measured = exact_match(model, tokenizer, heldout()[:300])
    check_specialist(name, measured)
    stated = json.loads((assets_path() / "lab.json").read_text())["exact_match"][name]
    assert measured == pytest.approx(stated, abs=0.1)


def test_the_shipped_reward_models_prefer_the_correct_answer_to_that_of_another_question():
    assert share_of_right_votes(assets_path()) >= RIGHT_VOTES


def test_the_shipped_corpus_is_reproduced_by_its_seed():
    assert [item.instruction for item in heldout()] == [row.instruction for row in draw_rows("heldout", 600, seed=0)]


@pytest.mark.slow
def test_the_build_gives_a_specialist_as_good_as_the_shipped_one():
    model, tokenizer = build_specialist("mpt", seed=0)
    items = heldout()[:300]
    measured = exact_match(model, tokenizer, items)
    check_specialist("mpt", measured)
    stated = json.loads((assets_path() / "lab.json").read_text())["exact_match"]["mpt"]
    assert all(measured[skill] >= stated[skill] - 0.1 for skill in SPECIALTIES["mpt"])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_whole_build_gives_a_laboratory_as_good_as_the_shipped_one(tmp_path):
    """Reads back the output of `profuser lab build`; takes about twenty minutes on two cores."""
    build_lab(tmp_path / "lab", seed=0)
    made, shipped = (json.loads((folder / "lab.json").read_text()) for folder in (tmp_path / "lab", assets_path()))
    for name in SPECIALTIES:
        model, tokenizer = load(AutoModelForCausalLM, tmp_path / "lab" / "sources" / name)
        measured = exact_match(model, tokenizer, heldout()[:300])
        check_specialist(name, measured)
        assert all(measured[skill] >= shipped["exact_match"][name][skill] - 0.1 for skill in SPECIALTIES[name])
    assert all(made["reward_accuracy"][name] >= shipped["reward_accuracy"][name] - 0.1 for name in REWARDS)
    assert share_of_right_votes(tmp_path / "lab") >= RIGHT_VOTES


@pytest.mark.slow
def test_sources_built_from_a_corpus_learn_it_with_separate_tokenizers(tmp_path):
    pairs = [(item.instruction, item.response) for item in draw_rows("train", 600, seed=1)]
    build_sources_from_corpus(pairs, tmp_path / "lab", num_steps=20)
    made = json.loads((tmp_path / "lab" / "lab.json").read_text())
    assert all(value["after"] < 0.7 * value["before"] for value in made["bits_per_byte"].values())
    sizes = {len(AutoTokenizer.from_pretrained(tmp_path / "lab" / "sources" / name)) for name in SPECIALTIES}
    assert len(sizes) == 3
    with pytest.raises(UserError, match="--overwrite"):
        build_sources_from_corpus(pairs, tmp_path / "lab")


def test_a_corpus_too_small_for_sources_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 200 are needed"):
        build_sources_from_corpus([("a", "b")] * 10, tmp_path / "lab")
