"""Prompt and response in every model's own tokens: the same response bytes for all, and the right end of turn."""

import pytest

from profuser.corpus import Message, encode_example, end_token_id
from profuser.corpus.template import render_prompt
from profuser.errors import UserError
from profuser.recipe.models import JinjaTemplate, OwnTemplate
from tests import tiny

PROMPT = [Message("user", "Sort the letters c u")]
RESPONSE = "Sort c u and say 3. Ünï 漢."
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
    "{% else %}### Response:\n{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
TEMPLATES = {"own": OwnTemplate(), "alpaca": JinjaTemplate(kind="jinja", text=ALPACA)}
TOKENIZERS = {"chatml": tiny.byte_level_tokenizer(), "vicuna": tiny.sentencepiece_tokenizer()}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("response", [RESPONSE, "3", "\n\n- a\n- b", "</s>x", "a  b"])
def test_a_response_keeps_its_text_and_ends_the_turn_once(tokenizer, template, response):
    example = encode_example(tokenizer, PROMPT, response, template)
    assert example.prompt_ids == render_prompt(tokenizer, PROMPT, template)
    assert example.response_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.response_ids[:-1]).removeprefix(" ") == response


def test_the_end_of_turn_may_be_an_added_special_that_is_not_the_end_of_sequence():
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert end_token_id(tokenizer, OwnTemplate()) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_next_turns_beginning_is_no_end():
    tokenizer = tiny.sentencepiece_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n<s>{% endfor %}"
    assert end_token_id(tokenizer, OwnTemplate()) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "expected"),
    [(OwnTemplate(), "has no chat template"), (JinjaTemplate(kind="jinja", text="{% for %}"), "template.text: line 1")],
)
def test_a_template_that_is_missing_or_broken_is_one_line(template, expected):
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=expected):
        encode_example(tokenizer, PROMPT, RESPONSE, template)
