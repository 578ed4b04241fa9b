"""Rewards against the ground truth: chrF, ROUGE-L, GSM8K's last number; and rewards of some categories only."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf

from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.kinds import load_judge
from profuser.rewards.verifiers import last_number, same_last_number

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
TRUTH = "The cat sat on the mat."
ANSWERS = [TRUTH, "A cat sat on a mat", "Dogs bark", "", "the mat on sat cat The"]


def judge(**settings):
    return load_judge(TypeAdapter(RewardConfig).validate_python({"name": "judge", **settings}))


def rewards(answers, truth=TRUTH, **settings):
    return judge(**settings).score([{"response": truth, "category": None}] * len(answers), answers)


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"beta": 1, "char_order": 4}])
def test_chrf_is_sacrebleus(options):
    found = rewards(ANSWERS, kind="chrf", **options)
    assert found == pytest.approx([sentence_chrf(answer, [TRUTH], **options).score / 100 for answer in ANSWERS])
    assert found[[0, 3]] == pytest.approx([1, 0])


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_l_is_rouge_scores(stem):
    found = rewards(ANSWERS, kind="rouge_l", stem=stem)
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    assert found == pytest.approx([scorer.score(TRUTH, answer)["rougeL"].fmeasure for answer in ANSWERS])
    assert found[[0, 3]].tolist() == [1, 0]


def test_rouge_l_does_not_judge_a_ground_truth_without_words_and_chrf_does():
    chinese = "\u6211\u559c\u6b22\u732b"
    assert np.isnan(rewards([chinese], chinese, kind="rouge_l")).all()
    assert rewards([chinese, "\u6211\u559c\u6b22\u72d7"], chinese, kind="chrf") == pytest.approx([1, 0.6], abs=0.2)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs GSM8K's training split")
def test_the_last_number_is_gsm8ks_answer_in_every_row():
    rows = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 1000
    for text in rows:
        number = text.rsplit("####", 1)[1].strip().replace(",", "")
        assert last_number(text) == last_number(number) is not None
        for form in (f"So the answer is {number}.", f"**${number}**", rf"\boxed{{{number}}}", f"It is {number}"):
            assert same_last_number(form, text), (form, text)
        assert not same_last_number(f"The answer is {number}1", text)
        assert re.fullmatch(r"-?[\d.]+", number)


def test_a_reward_judges_only_its_categories():
    rows = [{"response": "#### 4", "category": category} for category in ("math", "chat", None)]
    only = judge(kind="last_number", categories=["math"]).score(rows, ["4"] * 3)
    rest = judge(kind="chrf", except_categories=["math"]).score(rows, ["4"] * 3)
    assert [math.isnan(value) for value in only] == [False, True, True]
    assert [math.isnan(value) for value in rest] == [True, False, False]
    assert only[0] == 1.0


def recipe(reward, **corpus):
    return {
        "name": "mix",
        "corpus": {"path": "data.jsonl", **corpus},
        "sources": [{"name": "a", "model": "m"}],
        "target": {"model": "m"},
        "rewards": [{"kind": "last_number", "name": "number", **reward}],
    }


def test_categories_of_a_corpus_without_categories_are_refused():
    assert parse_recipe(recipe({"categories": ["math"]}, category_field="kind"), "mix")
    with pytest.raises(
        UserError, match=r"rewards.number.categories: the corpus has no categories; set corpus.category_field"
    ):
        parse_recipe(recipe({"categories": ["math"]}), "mix")
    with pytest.raises(ValidationError, match="exclude each other"):
        judge(kind="chrf", categories=["a"], except_categories=["b"])
