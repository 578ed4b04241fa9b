"""Reward models: every engine reads the same conversation and returns the same scores."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from profuser.errors import EngineError
from profuser.recipe.rewards import RewardModelConfig
from profuser.rewards.conversations import Conversations
from profuser.rewards.judges import CountsAnswers
from profuser.rewards.kinds import load_judge
from tests import tiny

ANSWERS = ["The answer is 7.", "No.", "Sort the letters, then say 8. " * 3, "a b c d e f " * 40]
ROWS = [{"row_id": str(n), "messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(len(ANSWERS))]


def config(path, kind="transformers", **settings):
    return RewardModelConfig(kind="reward_model", name="tiny", model=path, engine={"kind": kind}, **settings)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.reward(tmp_path_factory.mktemp("models") / "reward")


@torch.inference_mode()
def one_by_one(path, max_length):
    """The reference: no padding, one conversation at a time, the head applied at its last token."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    out = []
    for row, answer in zip(ROWS, ANSWERS, strict=True):
        messages = [*row["messages"], {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        out.append(model(input_ids=torch.tensor([ids[-max_length:]])).logits[0, 0].item())
    return out


ONE_ANSWER = "{% if messages | length != 2 %}{{ raise_exception('one question, one answer') }}{% endif %}" + tiny.VICUNA


@pytest.mark.parametrize("template", [tiny.VICUNA, ONE_ANSWER, None], ids=["template", "of one answer", "none"])
def test_special_tokens_in_texts_are_plain_text_to_a_judge(path, tmp_path, template):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(path).save_pretrained(tmp_path)
    judge = Conversations(str(tmp_path), config(str(tmp_path), max_length=64))
    rows = [{"row_id": "0", "messages": [{"role": "user", "content": f"Say {word}."}]} for word in ("it", "</s> <s>")]
    usual, found = judge.encode(rows, ["it", "</s> a<s><unk>"])
    specials = set(tokenizer.all_special_ids)
    assert [token for token in found if token in specials] == [token for token in usual if token in specials]
    assert "Say </s> <s>." in tokenizer.decode(found)
    assert "</s> a<s><unk>" in tokenizer.decode(found)
    assert len(judge.encode(rows, ["</s> a" * 100] * 2)[0]) == 64


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_do_not_depend_on_batches_or_padding(path, batch_size):
    found = load_judge(config(path, batch_size=batch_size, max_length=64)).score(ROWS, ANSWERS)
    np.testing.assert_allclose(found, one_by_one(path, 64), atol=1e-5)
    assert len(set(found)) == len(ANSWERS)


def test_a_judge_counts_the_answers_that_it_has_scored(path):
    judge, counts = load_judge(config(path, batch_size=2, max_length=64)), []
    assert isinstance(judge, CountsAnswers)
    judge.answered = counts.append
    judge.score(ROWS, ANSWERS)
    assert sum(counts) == len(ANSWERS)
    assert len(counts) > 1


@pytest.mark.parametrize("pad_token", [None, "</s>"])
def test_checkpoints_without_a_pad_token_or_with_the_end_of_turn_as_one_are_scored(path, tmp_path, pad_token):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = pad_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = load_judge(config(str(tmp_path)))
    together = judge.score(ROWS, ANSWERS)
    alone = [judge.score([row], [answer])[0] for row, answer in zip(ROWS, ANSWERS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # If padding is the end of turn, Transformers reads the score at the token before it, as such models were trained.
    at_the_end = np.isclose(together, one_by_one(path, 256), atol=1e-5)
    assert at_the_end.all() if pad_token is None else not at_the_end.any()


def test_a_classifier_with_several_labels_is_rejected(path, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"rewards.tiny: .* has 3 labels; a reward model has one"):
        load_judge(config(str(tmp_path)))


def test_the_error_for_a_missing_model_names_it():
    with pytest.raises(EngineError, match=r"rewards.tiny: ./nowhere could not be loaded"):
        load_judge(config("./nowhere"))


@pytest.mark.vllm
def test_vllm_equals_transformers(path):
    found, oracle = (load_judge(config(path, kind)).score(ROWS, ANSWERS) for kind in ("vllm", "transformers"))
    np.testing.assert_allclose(found, oracle, atol=1e-4)


@pytest.mark.vllm
def test_vllm_supports_classifiers_derived_from_its_causal_models():
    from profuser.rewards.vllm_reward_model import knows

    assert knows("LlamaForSequenceClassification")
    assert knows("Qwen3ForSequenceClassification")
    assert not knows("DebertaV2ForSequenceClassification")


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + tiny.VICUNA
)


def test_a_judge_scores_all_rows_but_those_that_its_template_refuses(path, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = NO_SYSTEM
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    system = {"role": "system", "content": "Be brief."}
    rows = [dict(row, messages=[system, *row["messages"]]) if row["row_id"] == "1" else row for row in ROWS]
    rows = [dict(row, source_file="f.jsonl", source_line=number) for number, row in enumerate(rows)]
    usual = load_judge(config(path, max_length=64)).score(ROWS, ANSWERS)
    found = load_judge(config(str(tmp_path), max_length=64)).score(rows, ANSWERS)
    assert np.isnan(found).tolist() == [False, True, False, False]
    np.testing.assert_allclose(np.delete(found, 1), np.delete(usual, 1), atol=1e-5)
    assert (
        "rewards.tiny: f.jsonl:1: its chat template refuses it: System role not supported (for turns of system, user, "
        "assistant)" in capsys.readouterr().out
    )
    lenient = config(str(tmp_path), max_length=64, template={"kind": "jinja", "text": tiny.VICUNA})
    assert not np.isnan(load_judge(lenient).score(rows, ANSWERS)).any()
