"""Requests that need what a model is not configured for: 400 in OpenAI's format, with our setting and without vLLM's flags."""

import json
from contextlib import suppress

import pytest

from profuser.serving.errors import ApiError
from profuser.serving.needs import Abilities, check_needs, own_words, template_variables
from profuser.serving.requests import CHAT, COMPLETIONS, RESPONSES
from tests.corpus.families import FAMILIES

TURNS = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
HYBRID = template_variables(FAMILIES["qwen 3"].text) | {"tools"}
PLAIN = Abilities(variables=template_variables(FAMILIES["smollm 2"].text))
ABLE = Abilities("qwen3", "hermes", HYBRID, media=frozenset({"image"}), max_logprobs=50, has_priorities=True)
SILENT = Abilities("none", "hermes", HYBRID)
BLIND = Abilities("none", "hermes", PLAIN.variables)
BARE = Abilities(has_template=False)

REFUSED = {
    "tools without a parser": (CHAT, {"tools": [TOOL]}, PLAIN, "tools", "profuser serve --tool-parser NAME"),
    "a forced tool without a parser": (
        CHAT,
        {"tools": [TOOL], "tool_choice": "required"},
        PLAIN,
        "tools",
        "`tool_parser` of the model",
    ),
    "tools that the template does not write": (CHAT, {"tools": [TOOL]}, BLIND, "tools", "--chat-template FILE"),
    "a response's tools": (RESPONSES, {"tools": [FLAT]}, PLAIN, "tools", "--tool-parser"),
    "a tool of the server": (RESPONSES, {"tools": [{"type": "web_search"}]}, ABLE, "tools", "no tool 'web_search'"),
    "old functions": (CHAT, {"functions": []}, ABLE, "functions", "use `tools`"),
    "effort without a setting": (CHAT, {"reasoning_effort": "low"}, PLAIN, "reasoning_effort", "no setting"),
    "effort without a parser": (
        CHAT,
        {"reasoning_effort": "low"},
        SILENT,
        "reasoning_effort",
        "--reasoning-parser NAME",
    ),
    "a response's effort": (
        RESPONSES,
        {"reasoning": {"effort": "low"}},
        SILENT,
        "reasoning.effort",
        "--reasoning-parser",
    ),
    "hidden reasoning": (CHAT, {"include_reasoning": False}, SILENT, "include_reasoning", "--reasoning-parser"),
    "a budget": (CHAT, {"thinking_token_budget": 9}, SILENT, "thinking_token_budget", "--reasoning-parser"),
    "a summary": (RESPONSES, {"reasoning": {"summary": "detailed"}}, ABLE, "reasoning.summary", "`content`"),
    "a template of the client": (CHAT, {"chat_template": "x"}, ABLE, "chat_template", "--chat-template FILE"),
    "an unknown variable": (
        CHAT,
        {"chat_template_kwargs": {"enable_thinking": True}},
        PLAIN,
        "chat_template_kwargs",
        "'enable_thinking'; it reads: add_generation_prompt, messages",
    ),
    "a picture": (CHAT, {"messages": IMAGE}, PLAIN, "messages", "reads no image"),
    "a response's picture": (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        PLAIN,
        "messages",
        "reads no image",
    ),
    "an unknown format": (
        CHAT,
        {"response_format": {"type": "xml"}},
        ABLE,
        "response_format",
        "no type 'xml'; there are: text",
    ),
    "a response's format": (RESPONSES, {"text": {"format": {"type": "xml"}}}, ABLE, "text.format", "no type 'xml'"),
    "too many log-probabilities": (
        CHAT,
        {"logprobs": True, "top_logprobs": 30},
        PLAIN,
        "top_logprobs",
        "{max_logprobs: 30}",
    ),
    "a completion's log-probabilities": (COMPLETIONS, {"logprobs": 30}, PLAIN, "logprobs", "{max_logprobs: 30}"),
    "a priority": (COMPLETIONS, {"priority": 1}, PLAIN, "priority", "{scheduling_policy: priority}"),
    "a stored response": (
        RESPONSES,
        {"previous_response_id": "resp_1"},
        ABLE,
        "previous_response_id",
        "keeps no responses",
    ),
    "a response to store": (RESPONSES, {"store": True}, ABLE, "store", "keeps no responses"),
    "a background response": (RESPONSES, {"background": True}, ABLE, "background", "keeps no responses"),
    "encrypted reasoning": (RESPONSES, {"include": ["reasoning.encrypted_content"]}, ABLE, "include", "not encrypted"),
    "a chat without a template": (CHAT, {}, BARE, "messages", "profuser serve --chat-template"),
}


@pytest.mark.parametrize(("path", "fields", "able", "param", "words"), REFUSED.values(), ids=REFUSED)
def test_a_request_for_what_is_not_configured_is_refused_with_our_setting(path, fields, able, param, words):
    turns = {"input": "Hi"} if path == RESPONSES else {"prompt": "Hi"} if path == COMPLETIONS else {"messages": TURNS}
    with pytest.raises(ApiError) as caught:
        check_needs(path, {"model": "m", **turns, **fields}, able)
    error = caught.value
    assert (error.status, error.param) == (400, param)
    assert error.code in ("not_configured", "unsupported")
    assert words in error.message
    assert not {"--tool-call-parser", "--enable-auto-tool-choice", "--trust-request-chat-template"} & set(
        error.message.split()
    )


ACCEPTED = [
    (CHAT, {"tools": [TOOL], "tool_choice": "none"}, PLAIN),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, ABLE),
    (CHAT, {"reasoning_effort": "low", "thinking_token_budget": 9, "include_reasoning": False}, ABLE),
    (CHAT, {"reasoning_effort": "none"}, SILENT),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, ABLE),
    (CHAT, {"messages": IMAGE, "top_logprobs": 50, "priority": 3}, ABLE),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, PLAIN),
    (CHAT, {"reasoning_effort": "low", "tools": [TOOL]}, Abilities("openai_gptoss", "openai")),
    (RESPONSES, {"tools": [FLAT], "reasoning": {"effort": "low", "summary": "auto"}, "store": False}, ABLE),
    (COMPLETIONS, {"prompt": "x"}, BARE),
]


@pytest.mark.parametrize(("path", "fields", "able"), ACCEPTED)
def test_what_a_model_is_configured_for_is_accepted(path, fields, able):
    check_needs(path, {"model": "m", "messages": TURNS, **fields}, able)


ODD = [None, 1, "x", [], {}, [None], [{}], {"type": 1}, [{"type": []}], [{"content": [1]}], True]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_field_of_an_odd_type_is_left_to_vllm_or_refused(path, value):
    names = ("messages", "input", "tools", "tool_choice", "reasoning", "reasoning_effort", "text", "response_format")
    for name in (*names, "chat_template_kwargs", "logprobs", "priority", "include", "store", "include_reasoning"):
        for able in (PLAIN, ABLE, SILENT):
            with suppress(ApiError):
                check_needs(path, {name: value}, able)


def test_flags_of_vllm_in_its_errors_become_settings():
    message = "You must set `--enable-prompt-embeds` to input `prompt_embeds`, or --limit-mm-per-prompt."
    body = json.dumps({"error": {"message": message, "type": "e", "code": 400}}).encode()
    words = json.loads(own_words(body))["error"]["message"]
    assert "--" not in words
    assert "`options: {enable_prompt_embeds: ...}` of the served model" in words
    for untouched in (b"not -- json", b'{"a": "--b-c"}', b'{"error": {"message": "fine"}}'):
        assert own_words(untouched) == untouched


def test_every_released_template_is_read_for_its_variables():
    for family in FAMILIES.values():
        assert "messages" in template_variables(family.text)
