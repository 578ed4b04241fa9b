"""Prompt and response in each model's tokens: the same response bytes for all, and the right end of turn."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.alignment.spans import boundaries
from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import Message, encode_example, end_token_id, render_prompt
from profuser.errors import UserError
from profuser.lab.tokenizers import TOKENIZERS as LAB
from profuser.recipe.template import JinjaTemplate, OwnTemplate
from tests import tiny

PROMPT = [Message("user", "Sort the letters c u")]
RESPONSE = "Sort c u and say 3. Ünï 漢."
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
    "{% else %}### Response:\n{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
VICUNA_STRICT = tiny.VICUNA.replace("ASSISTANT:{% else %} {{", "ASSISTANT: {% else %}{{")
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def jinja(text):
    return JinjaTemplate(kind="jinja", text=text)


TEMPLATES = {
    "own": OwnTemplate(),
    "alpaca": jinja(ALPACA),
    "vicuna": jinja(tiny.VICUNA),
    "vicuna with a space": jinja(VICUNA_STRICT),
    "thinking": jinja(THINKING),
    "trimming": jinja(ALPACA.replace("['content']", ".content | trim")),
}
ENDS = {"chatml": "<|im_end|>", "vicuna": "</s>", "lab llama": "</s>", "lab mpt": "<|im_end|>", "lab neox": "</s>"}
MAKERS = {"chatml": tiny.byte_level_tokenizer, "vicuna": tiny.sentencepiece_tokenizer}


@cache
def made(name):
    """Returns a tokenizer and its byte table: a tiny one, or one of the laboratory's kinds."""
    kind = LAB.get(name.removeprefix("lab "))
    tokenizer = kind.make(tiny.TEXT[::2], kind.lab_vocab_size) if kind else MAKERS[name]()
    return tokenizer, TokenBytes.from_tokenizer(tokenizer, len(tokenizer), [end_token_id(tokenizer, OwnTemplate())])


LETTERS = st.sampled_from("abc 0123.,:\n") | st.characters(exclude_categories=["Cs"], exclude_characters="\x00")


@pytest.mark.parametrize("shown", ["own", "alpaca", "trimming"])
@pytest.mark.parametrize("name", ["chatml", "vicuna"])
@pytest.mark.parametrize("response", [RESPONSE, "3", "\n\n- a\n- b", "</s>x", "a  b"])
def test_a_response_keeps_its_text_and_ends_the_turn_once(name, shown, response):
    (tokenizer, _), template = made(name), TEMPLATES[shown]
    example = encode_example(tokenizer, PROMPT, response, template)
    assert example.prompt_ids == render_prompt(tokenizer, PROMPT, template)
    assert example.response_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.response_ids[:-1]).removeprefix(" ") == response


@pytest.mark.parametrize("name", MAKERS)
def test_a_word_of_the_maximum_row_size_is_tokenized(name):
    # Quadratic time would not finish.
    response = "c" * 999_990
    tokenizer, _ = made(name)
    example = encode_example(tokenizer, PROMPT, response, OwnTemplate())
    assert tokenizer.decode(example.response_ids[:-1]).removeprefix(" ") == response


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", ENDS)
@settings(max_examples=6)
@given(
    question=st.text(LETTERS, max_size=12).map(str.strip).filter(bool),
    # SentencePiece writes a blank as U+2581: alone, it is spelt as nothing, and such a row is refused and counted.
    response=st.text(LETTERS, max_size=12).map(str.strip).filter(lambda text: text.strip("\u2581"))
    | st.sampled_from(["k", "think", "</think>", "user"]),
)
def test_a_responses_tokens_spell_its_bytes_under_every_template(name, template, question, response):
    (tokenizer, table), messages = made(name), [Message("system", "Be brief."), Message("user", question)]
    example = encode_example(tokenizer, messages, response, template)
    bounds = boundaries(table, example.response_ids, response.encode())
    assert bounds[0] in (0, -1)
    assert bounds[-1] == len(response.encode())
    assert example.prompt_ids == render_prompt(tokenizer, messages, template)
    assert example.response_ids[-1] == tokenizer.convert_tokens_to_ids(ENDS[name])


@pytest.mark.parametrize("name", ENDS)
def test_prompt_and_response_are_the_tokens_that_the_model_saw_in_training(name):
    (tokenizer, _), turn = made(name), Message("assistant", RESPONSE)
    example = encode_example(tokenizer, PROMPT, RESPONSE, OwnTemplate())
    turns = [{"role": message.role, "content": message.content} for message in (*PROMPT, turn)]
    whole = tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
    ids = [*example.prompt_ids, *example.response_ids]
    assert ids == whole[: len(ids)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", ENDS)
def test_a_turn_ends_with_the_token_of_its_template(name, template):
    tokenizer, _ = made(name)
    assert end_token_id(tokenizer, template) == tokenizer.convert_tokens_to_ids(ENDS[name])


def test_the_end_of_turn_may_be_an_added_special_that_is_not_the_end_of_sequence():
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert end_token_id(tokenizer, OwnTemplate()) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_beginning_of_the_next_turn_is_not_an_end_of_turn():
    tokenizer = tiny.sentencepiece_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n<s>{% endfor %}"
    assert end_token_id(tokenizer, OwnTemplate()) == tokenizer.eos_token_id


def test_an_end_of_turn_need_not_be_a_named_special_token():
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in tokenizer.all_special_ids
    assert encode_example(tokenizer, PROMPT, RESPONSE, OwnTemplate()).response_ids[-1] == end


@pytest.mark.parametrize(
    ("tail", "end"), [("<s></s>", "</s>"), ("</s><s>", "</s>"), ("\n\n", "</s>"), ("<unk>", "<unk>")]
)
def test_the_end_of_turn_is_the_first_special_token_after_it_except_bos(tail, end):
    tokenizer = tiny.sentencepiece_tokenizer()
    template = jinja("{% for m in messages %}{{ m.content }}" + tail + "{% endfor %}")
    assert end_token_id(tokenizer, template) == tokenizer.convert_tokens_to_ids(end)


def test_one_token_may_be_both_bos_and_eos():
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = "<|endoftext|>"
    template = jinja("{% for m in messages %}{{ m.content }}{{ bos_token }}{% endfor %}<|im_end|>")
    assert end_token_id(tokenizer, template) == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_tokenizer_without_an_end_of_turn_is_refused():
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no special token, and there is no eos_token"):
        end_token_id(tokenizer, jinja("{% for m in messages %}{{ m.content }}\n{% endfor %}"))


REFUSING = "{{ raise_exception('System role\nis not supported') }}"


@pytest.mark.parametrize(
    ("own", "template", "expected"),
    [
        (None, OwnTemplate(), "has no chat template; set one for all models"),
        ("", OwnTemplate(), "has no chat template"),
        (REFUSING, OwnTemplate(), "chat template.*System role is not supported"),
        ("{% for %}", OwnTemplate(), "chat template"),
        (None, jinja("{{ messages[9].content.text }}"), "template.text: .*no element 9"),
        (None, jinja(REFUSING), "template.text: System role is not supported"),
    ],
)
def test_a_missing_broken_or_refusing_template_is_reported_in_one_line(own, template, expected):
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = own
    for attempt in (
        lambda: encode_example(tokenizer, PROMPT, RESPONSE, template),
        lambda: end_token_id(tokenizer, template),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            attempt()
        assert "\n" not in str(caught.value)
