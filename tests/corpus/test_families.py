"""One rendering of every prompt: what Transformers renders with a family's template, in all places that render."""

import copy

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from profuser.corpus import (
    Message,
    Refusal,
    encode_example,
    encode_examples,
    end_token_id,
    render_prompt,
    render_prompts,
)
from profuser.corpus.rendering import chat_texts
from profuser.corpus.template import render_conversations
from profuser.errors import UserError
from profuser.recipe.template import JinjaTemplate, OwnTemplate
from tests.corpus.families import FAMILIES, tokenizer_of

ROLES = {"s": "system", "u": "user", "a": "assistant"}
TEXTS = {"s": "Be brief.", "u": "  Sort c\n\nu. ", "a": "c u"}
ORDERS = ("u", "su", "uau", "suau", "uu", "au")
DAY = "2026-03-05"
BOTH = {
    "own": lambda text: OwnTemplate(date=DAY),
    "jinja": lambda text: JinjaTemplate(kind="jinja", text=text, date=DAY),
}


def turns(order):
    return [Message(ROLES[initial], TEXTS[initial]) for initial in order]


def expected(name, order, monkeypatch, opens=True, **arguments):
    """Returns what Transformers renders on the day."""
    import datetime

    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DAY)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    conversation = [message._asdict() for message in turns(order)]
    return tokenizer_of(name).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=opens, **arguments
    )


def text_of(name, ids):
    return tokenizer_of(name).decode(ids, skip_special_tokens=False)


def accepts(name, order, monkeypatch):
    """Returns whether Transformers renders this order of roles, followed by an answer."""
    try:
        return bool(expected(name, order + "a", monkeypatch, opens=False) and expected(name, order, monkeypatch))
    except TemplateError:
        return False


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pasted_template_and_the_models_own_render_what_transformers_renders(name, order, kind, monkeypatch):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    template, answer = BOTH[kind](family.text), Message("assistant", TEXTS["a"])
    (found,) = render_conversations(tokenizer, [[*turns(order), answer]], template)
    if not accepts(name, order, monkeypatch):
        assert isinstance(found, Refusal)
        assert order in family.refuses
        return
    assert order not in family.refuses
    if order in family.drops and kind == "own":
        assert isinstance(found, Refusal)
        assert found.reason.startswith("it leaves out the system turn (for turns of system, user")
    else:
        assert found == expected(name, order + "a", monkeypatch, opens=False)
    wanted = expected(name, order, monkeypatch)
    assert text_of(name, render_prompt(tokenizer, turns(order), template)) == wanted
    example = encode_example(tokenizer, turns(order), "c u", template)
    assert tokenizer.convert_ids_to_tokens(example.response_ids[-1]) == family.end
    assert text_of(name, example.response_ids[:-1]).strip() == "c u"
    asks, closed = family.thinks or ("", "")
    assert wanted.endswith(asks)
    assert text_of(name, example.prompt_ids) == wanted.removesuffix(asks) + closed


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.arguments])
def test_arguments_are_those_of_transformers(name, kind, monkeypatch):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    template = BOTH[kind](family.text).model_copy(update={"arguments": family.arguments})
    wanted = expected(name, "su", monkeypatch, **family.arguments)
    assert wanted != expected(name, "su", monkeypatch)
    assert text_of(name, render_prompt(tokenizer, turns("su"), template)) == wanted


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.silent])
def test_a_model_is_asked_not_to_think(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    template = OwnTemplate(thinking="off", date=DAY)
    prompt = render_prompt(tokenizer, turns("u"), template)
    assert text_of(name, prompt).endswith(family.silent)
    assert encode_example(tokenizer, turns("u"), "c u", template).prompt_ids == prompt


def judge(tokenizer, tmp_path, template):
    """Returns what a judge with this tokenizer reads."""
    from transformers import LlamaConfig

    from profuser.recipe.rewards import RewardModelConfig
    from profuser.rewards.conversations import Conversations

    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(num_labels=1, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    return Conversations(
        str(tmp_path), RewardModelConfig(kind="reward_model", name="j", model=str(tmp_path), template=template)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_judges_benchmarks_the_exported_and_the_served_model_render_the_prompts_of_the_training(name, tmp_path):
    from profuser.evaluation.benchmarks.text import neutralise_special_tokens
    from profuser.training.export import served_text

    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    template = OwnTemplate(arguments=family.arguments)
    trained = encode_example(tokenizer, turns("u"), "c u", template)
    reader = judge(copy.deepcopy(tokenizer), tmp_path / "judge", template)
    row = {"row_id": "0", "messages": [m._asdict() for m in turns("u")]}
    (read,) = reader.encode([row], ["c u"])
    (whole,) = render_conversations(tokenizer, [[*turns("u"), Message("assistant", "c u")]], template)
    # A judge reads the score at the last token that is not padding.
    assert text_of(name, read) == str(whole).removesuffix(tokenizer.pad_token)

    fused = copy.deepcopy(tokenizer)
    fused.chat_template = served_text(tokenizer, template)
    fused.save_pretrained(tmp_path / "fused")
    served = AutoTokenizer.from_pretrained(tmp_path / "fused")
    conversation = [m._asdict() for m in turns("u")]
    assert served.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False) == trained.prompt_ids
    # The settings are applied to the exported template again when the fused model is evaluated.
    assert encode_example(served, turns("u"), "c u", template) == trained
    assert end_token_id(served, template) == end_token_id(tokenizer, template)

    harness = copy.deepcopy(tokenizer)
    harness.chat_template = chat_texts(tokenizer, template).answering
    neutralise_special_tokens(harness, rendered=True)
    text = harness.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert harness.encode(text, add_special_tokens=False) == trained.prompt_ids


@pytest.mark.parametrize(("name", "order"), [(n, o) for n, family in FAMILIES.items() for o in family.refuses])
def test_a_refused_order_of_roles_is_refused_alone(name, order):
    tokenizer = tokenizer_of(name)
    examples = [(turns(each), "c u") for each in ("u", order, "uau")]
    first, refused, last = encode_examples(tokenizer, examples, OwnTemplate())
    assert isinstance(refused, Refusal)
    assert "(for turns of " in refused.reason
    assert [first, last] == [encode_example(tokenizer, *examples[place], OwnTemplate()) for place in (0, 2)]


def test_the_date_is_the_same_on_any_day():
    days = {
        "llama 3.2": "09 Feb 2020",
        "smollm 3": "09 February 2020",
        "gpt-oss": "2020-02-09",
        "granite": "February 09, 2020",
    }
    for name, day in days.items():
        assert day in text_of(name, render_prompt(tokenizer_of(name), turns("u"), OwnTemplate(date="2020-02-09")))


def without(role):
    """Returns a template that leaves out the turns of a role."""
    body = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    return JinjaTemplate(kind="jinja", text=f"{{% for m in messages if m.role != '{role}' %}}{body}{{% endfor %}}")


def test_a_row_is_refused_if_the_template_leaves_out_its_system_turn():
    tokenizer, template = tokenizer_of("qwen 2.5"), without("system")
    conversations = [turns(order) for order in ("u", "su", "uau", "suau")]
    examples = encode_examples(tokenizer, [(each, "c u") for each in conversations], template)
    for found in (examples, render_prompts(tokenizer, conversations, template)):
        assert [isinstance(each, Refusal) for each in found] == [False, True, False, True]
        assert found[1] == Refusal("it leaves out the system turn (for turns of system, user)")


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_template_that_leaves_out_the_question_or_the_answer_is_refused(role):
    with pytest.raises(UserError, match=f"template.text: it leaves out the {role} turn"):
        encode_example(tokenizer_of("qwen 2.5"), turns("u"), "c u", without(role))


@pytest.mark.parametrize("role", ROLES.values())
def test_a_judge_reads_what_a_template_of_its_own_in_the_recipe_writes(role, tmp_path):
    tokenizer = tokenizer_of("qwen 2.5")
    row = {"row_id": "0", "messages": [m._asdict() for m in turns("su")]}
    (read,) = judge(copy.deepcopy(tokenizer), tmp_path, without(role)).encode([row], ["c u"])
    kept = [turn for turn in [*turns("su"), Message("assistant", "c u")] if turn.role != role]
    assert text_of("qwen 2.5", read) == "".join(f"<|im_start|>{r}\n{text}<|im_end|>" for r, text in kept)


def test_a_variable_of_which_a_template_only_spells_the_name_turns_no_thinking_off():
    tokenizer = tokenizer_of("qwq")
    text = f"{{% set help = 'Set thinking or enable_thinking.' %}}{FAMILIES['qwq'].text}"
    template = JinjaTemplate(kind="jinja", text=text, thinking="off")
    assert render_prompt(tokenizer, turns("u"), template) == render_prompt(
        tokenizer, turns("u"), OwnTemplate(thinking="off")
    )
