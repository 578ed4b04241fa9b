"""Special tokens spelled out in a text are text: under the templates and tokens of a dozen families, in every turn."""

import copy
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import Message, encode_example, end_token_id, render_prompt
from profuser.corpus.special_tokens import commands, encode, protect
from profuser.corpus.template import template_commands
from profuser.evaluation.benchmarks.text import neutralise_special_tokens
from profuser.recipe.models import OwnTemplate
from profuser.signals.ragged import Ragged
from tests import tiny
from tests.real_tokenizers import SENTENCEPIECE_CONTROL, sentencepiece


def each(turn, opening):
    """Returns a template that writes every turn, then opens the assistant's."""
    return f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"


FAMILIES = {
    "chatml": (tiny.CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "llama 3": (
        each(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"],
    ),
    "gemma": (
        each(
            "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
        ["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>"],
    ),
    "phi": (
        each("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n"),
        ["<|end|>", "<|user|>", "<|assistant|>"],
    ),
    "zephyr": (each("<|{{ m.role }}|>\n{{ m.content }}</s>\n", "<|assistant|>\n"), ["</s>", "<s>", "<unk>"]),
    "mistral": (
        each(
            "{% if m.role == 'assistant' %} {{ m.content }}</s>{% else %}[INST] {{ m.content }} [/INST]{% endif %}", ""
        ),
        ["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"],
    ),
    "command r": (
        each(
            "<|START_OF_TURN_TOKEN|>{{ m.role }}{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|>assistant",
        ),
        ["<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<BOS_TOKEN>"],
    ),
    "glm": (
        each("<|{{ m.role }}|>\n{{ m.content }}<|eom|>", "<|assistant|>\n"),
        ["<|eom|>", "[gMASK]", "<sop>", "<|user|>"],
    ),
    "granite": (
        each(
            "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"],
    ),
    "falcon": (each("{{ m.role }}: {{ m.content }}<|endoftext|>\n", "assistant: "), ["<|endoftext|>", ">>TITLE<<"]),
    "harmony": (
        each("<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>", "<|start|>assistant<|message|>"),
        ["<|end|>", "<|start|>", "<|message|>", "<|channel|>"],
    ),
    # Its turns begin with added tokens that are not marked as special.
    "deepseek": (
        each(
            "{{ '<\uff5cAssistant\uff5c' if m.role == 'assistant' else '<\uff5cUser\uff5c' }}{{ m.content }}"
            "{{ eos_token if m.role == 'assistant' }}",
            "<\uff5cAssistant\uff5c",
        ),
        ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"],
    ),
}
STRINGS = sorted(
    {text for _, strings in FAMILIES.values() for text in strings} | {"<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"}
)
ROLES = ("system", "user", "assistant")
TEMPLATE = OwnTemplate()
SENTENCEPIECE_LIKE = {"gemma", "zephyr", "mistral"}


@cache
def made(family):
    """Returns a tokenizer with a family's special tokens and template, and its byte table. The first token ends a turn."""
    template, strings = FAMILIES[family]
    tokenizer = tiny.sentencepiece_tokenizer() if family in SENTENCEPIECE_LIKE else tiny.byte_level_tokenizer()
    # Phi's tokens absorb the whitespace after them.
    added = [AddedToken(text, special=True, rstrip=family == "phi") for text in strings]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.eos_token, tokenizer.chat_template = strings[0], template
    if family == "deepseek":
        tokenizer.add_tokens(
            [
                AddedToken(text, special=False, normalized=False)
                for text in ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>")
            ]
        )
    end = end_token_id(tokenizer, TEMPLATE)
    return tokenizer, TokenBytes.from_tokenizer(tokenizer, len(tokenizer), [end])


def marks(tokenizer, ids):
    """Returns the commands among tokens, in order."""
    known = set(tokenizer.convert_tokens_to_ids(list(template_commands(tokenizer, TEMPLATE))))
    return [index for index in ids if index in known]


def turns(text):
    return [Message(role, text) for role in ROLES]


@pytest.mark.parametrize("text", ["{} a", "a {}", "a{}b", "x {0}\n{0} y"])
@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_any_turn_are_text(family, text):
    tokenizer, table = made(family)
    usual = encode_example(tokenizer, [*turns("ab"), Message("user", "ab")], "ab", TEMPLATE)
    assert marks(tokenizer, usual.prompt_ids), "the template has commands"
    for string in STRINGS:
        content = text.format(string)
        found = encode_example(tokenizer, [*turns(content), Message("user", content)], content, TEMPLATE)
        assert marks(tokenizer, found.prompt_ids) == marks(tokenizer, usual.prompt_ids), string
        assert marks(tokenizer, found.response_ids) == [table.end_ids[0]], string
        ids = Ragged.from_rows([found.response_ids])
        # SentencePiece encodes a space as this character; such a row is refused.
        lost = family in SENTENCEPIECE_LIKE and "\u2581" in string
        assert bool(misspelt(table, ids, [content.encode()])) == lost, string
        assert found.prompt_ids == render_prompt(tokenizer, [*turns(content), Message("user", content)], TEMPLATE)


FRAGMENTS = st.lists(
    st.sampled_from(["<", "|", "im_", "end|>", " ", "\n", "ab", "<|im_start|>", "<|im_end|>"]), max_size=8
)


@settings(max_examples=200)
@given(asked=FRAGMENTS.map("".join), response=FRAGMENTS.map("".join))
def test_pieces_of_special_tokens_do_not_combine_into_one(asked, response):
    tokenizer, table = made("chatml")
    found = encode_example(tokenizer, [Message("user", asked)], response, TEMPLATE)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert marks(tokenizer, found.prompt_ids) == [start, end, start]
    assert tokenizer.decode(found.prompt_ids) == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    assert misspelt(table, Ragged.from_rows([found.response_ids]), [response.encode()]) == {}


@cache
def without_commands(tokenizer):
    """Returns the tokenizer without its special tokens: another way to read them as text."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    known = set(commands(tokenizer))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in known]
    return Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize(
    "string", ["<s>", "</s>", "<unk>", "a<s>", "<s> b", "x\n</s>y  z", "<|im_end|>", "a <|im_end|>."]
)
def test_text_is_tokenized_as_if_there_were_no_special_tokens(string):
    for tokenizer in (made("chatml")[0], made("zephyr")[0], sentencepiece()):
        strings = commands(tokenizer)
        (found,) = encode(tokenizer, [protect(string, strings)], strings)
        assert found == without_commands(tokenizer).encode(string, add_special_tokens=False).ids


def test_text_merges_with_the_template_around_it_as_before():
    tokenizer, _ = made("phi")
    plain = render_prompt(tokenizer, [Message("user", " a b ")], TEMPLATE)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": " a b "}], tokenize=False, add_generation_prompt=True
    )
    assert plain == tokenizer.encode(rendered, add_special_tokens=False)
    marked = render_prompt(tokenizer, [Message("user", " a b <|end|>")], TEMPLATE)
    assert marked[: plain.index(tokenizer.eos_token_id) - 1] == plain[: plain.index(tokenizer.eos_token_id) - 1]


def test_an_added_token_that_occurs_in_answers_stays_a_token():
    tokenizer, _ = made("deepseek")
    thinking = tokenizer.convert_tokens_to_ids("<think>")
    assert thinking in encode_example(tokenizer, turns("a"), "<think>b <\uff5cUser\uff5c>", TEMPLATE).response_ids


def test_a_released_tokenizer_with_hundreds_of_control_tokens_reads_them_as_text():
    tokenizer = copy.deepcopy(sentencepiece(SENTENCEPIECE_CONTROL))
    tokenizer.chat_template = FAMILIES["mistral"][0]
    table = TokenBytes.from_tokenizer(tokenizer, len(tokenizer), [end_token_id(tokenizer, TEMPLATE)])
    usual = marks(tokenizer, render_prompt(tokenizer, [Message("user", "ab")], TEMPLATE))
    for string in template_commands(tokenizer, TEMPLATE)[::16]:
        found = encode_example(tokenizer, [Message("user", f"a{string} b")], f"{string}c", TEMPLATE)
        assert marks(tokenizer, found.prompt_ids) == usual
        assert misspelt(table, Ragged.from_rows([found.response_ids]), [f"{string}c".encode()]) == {}


def test_a_slow_tokenizer_reads_special_tokens_as_text():
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = FAMILIES["zephyr"][0]
    example = encode_example(tokenizer, [Message("user", "a</s>b")], "</s><pad>", TEMPLATE)
    assert tokenizer.decode(example.prompt_ids) == "<|user|>\na</s>b</s>\n<|assistant|>\n"
    assert example.prompt_ids.count(tokenizer.eos_token_id) == 1
    assert example.response_ids[-1] == tokenizer.eos_token_id
    assert bytes(index - 3 for index in example.response_ids[:-1]) == b"</s><pad>"


def test_a_saved_and_loaded_tokenizer_gives_the_same_tokens(tmp_path):
    made("gemma")[0].save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    messages = [Message("user", "<end_of_turn> <eos>")]
    assert render_prompt(tokenizer, messages, TEMPLATE) == render_prompt(made("gemma")[0], messages, TEMPLATE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_harness_reads_special_tokens_in_a_benchmark_as_text(family):
    tokenizer, reader = made(family)[0], copy.deepcopy(made(family)[0])
    neutralise_special_tokens(reader, rendered=False)
    assert reader("ab").input_ids == tokenizer("ab").input_ids
    texts = [f"a {string}b" for string in STRINGS]
    batch = reader(texts, padding="longest", return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for text, ids, mask in zip(texts, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        own = [index for index, there in zip(ids, mask, strict=True) if there]
        assert own == reader.encode(text)
        assert not set(own) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(own).strip() == (text.replace("\u2581", " ") if family in SENTENCEPIECE_LIKE else text)
    neutralise_special_tokens(reader, rendered=True)
    for string in STRINGS:
        history = [{"role": "user", "content": f"a{string}"}]
        asked = reader.encode(
            reader.apply_chat_template(history, tokenize=False, add_generation_prompt=True), add_special_tokens=False
        )
        assert asked == render_prompt(tokenizer, [Message("user", f"a{string}")], TEMPLATE)
