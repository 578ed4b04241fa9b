"""vLLM's parsers of a served model: the names are vLLM's, and no plain answer is taken for reasoning."""

import pytest

from profuser.corpus.rendering import generation_prompt
from profuser.corpus.template_text import with_arguments
from profuser.corpus.thinking import FAMILIES as MARKERS
from profuser.errors import UserError
from profuser.recipe.template import OwnTemplate
from profuser.serving.parsers import REASONING, TOOLS, choose_parsers, known_parsers
from profuser.training.export import served_text
from tests.corpus.families import FAMILIES, tokenizer_of

CHOSEN = {
    "qwen 2.5": (None, "hermes"),
    "qwen 3": ("qwen3", "hermes"),
    "qwq": ("deepseek_r1", "hermes"),
    "smollm 2": (None, None),
    "smollm 3": ("qwen3", None),
    "llama 3": (None, None),
    "phi 4": (None, None),
    "gpt-oss": ("openai_gptoss", "openai"),
    "deepseek r1": ("deepseek_r1", None),
    "deepseek r1 distill": ("deepseek_r1", None),
    "glm 4.5": ("glm45", "glm45"),
    "seed-oss": ("seed_oss", "seed_oss"),
    "granite": (None, None),
}
THINKING = [name for name, family in FAMILIES.items() if family.silent and name not in ("gpt-oss", "magistral")]
"""Without gpt-oss, whose prompts vLLM makes itself, and Magistral, whose tokenizer here has no token for tool calls."""


def choose(name, text, arguments=None, reasoning="auto", tools="auto"):
    model_type = "gpt_oss" if name == "gpt-oss" else "any"
    return choose_parsers(reasoning, tools, tokenizer_of(name), model_type, text, arguments or {})


def test_every_parser_of_the_tables_is_one_of_vllms():
    for rows, known in zip((REASONING, TOOLS), known_parsers(), strict=True):
        assert {row.parser for row in rows} - {None, *known} == set()
        assert all(row.marks or row.types for row in rows)


@pytest.mark.parametrize(("name", "expected"), CHOSEN.items(), ids=CHOSEN)
def test_the_parsers_of_a_family(name, expected):
    found = choose(name, FAMILIES[name].text)
    assert (found.reasoning, found.tools) == expected
    assert "\n" not in str(found)


def test_a_mistral_tokenizer_without_a_template_has_its_parsers():
    tokenizer = tokenizer_of("mistral v3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]}, replace_extra_special_tokens=False)
    assert choose("mistral v3", None).tools == "mistral"


def split(found, tokenizer, text, answer, arguments):
    """Returns reasoning and answer of a whole answer, and whether a stream begins with the answer proper."""
    from vllm.reasoning import ReasoningParserManager

    known = found.arguments | arguments
    parser = ReasoningParserManager.get_reasoning_parser(found.reasoning)(tokenizer, chat_template_kwargs=known)
    prompt = tokenizer.encode(generation_prompt(tokenizer, with_arguments(text, known)), add_special_tokens=False)
    return parser.extract_reasoning(answer, None), parser.is_reasoning_end(prompt)


@pytest.mark.parametrize("thinking", ["keep", "strip", "off"])
@pytest.mark.parametrize("name", THINKING)
def test_an_answer_after_closed_thinking_is_never_taken_for_reasoning(name, thinking):
    """Where the prompt of a run's template ends the thinking, the answer is whole."""
    tokenizer = tokenizer_of(name)
    text = served_text(tokenizer, OwnTemplate(thinking=thinking))
    found, prompt = choose(name, text), generation_prompt(tokenizer, text)
    ends = any(family.close in prompt for family in MARKERS)
    assert ends or thinking != "off"
    assert found.reasoning or ends
    if found.reasoning and ends:
        assert split(found, tokenizer, text, "An answer.", {}) == ((None, "An answer."), True)


@pytest.mark.parametrize("name", ["qwen 3", "smollm 3", "glm 4.5"])
@pytest.mark.parametrize("default", [True, False])
def test_a_request_turns_thinking_on_and_off(name, default):
    tokenizer, text = tokenizer_of(name), FAMILIES[name].text
    found = choose(name, text, {} if default else {"enable_thinking": False})
    assert found.arguments == {"enable_thinking": default}
    answer = "<think>\nA thought.\n</think>\n\nAn answer."
    for is_on in (True, False):
        given = {} if is_on == default else {"enable_thinking": is_on}
        (reasoning, content), ended = split(found, tokenizer, text, answer if is_on else "An answer.", given)
        assert content.strip() == "An answer."
        assert (reasoning or "").strip() == ("A thought." if is_on else "")
        assert ended is not is_on


def test_a_parser_that_would_take_answers_for_reasoning_is_refused_by_name_and_not_chosen():
    tokenizer = tokenizer_of("deepseek r1")
    text = served_text(tokenizer, OwnTemplate(thinking="strip"))
    assert choose("deepseek r1", text).reasoning is None
    with pytest.raises(UserError, match=r"deepseek_r1: its prompt ends the thinking.*set another, or none"):
        choose("deepseek r1", text, reasoning="deepseek_r1")


@pytest.mark.parametrize("setting", ["reasoning", "tools"])
def test_an_unknown_name_is_refused_with_the_known_ones(setting):
    with pytest.raises(UserError, match=r"'qwen9' is not known to vLLM; there are: auto, none, .*deepseek") as caught:
        choose("qwen 3", FAMILIES["qwen 3"].text, **{setting: "qwen9"})
    assert "\n" not in str(caught.value)


def test_a_parser_that_needs_tokens_of_another_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"tool_parser: llama3_json: .*bot token"):
        choose("qwen 3", FAMILIES["qwen 3"].text, tools="llama3_json")
