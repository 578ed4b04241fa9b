"""Refuses requests that need what a served model is not configured for, with the setting of `profuser serve` that configures it.

vLLM would name flags of its own, or ignore the field. It checks everything else.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import meta

from profuser.recipe.template import JINJA
from profuser.serving.errors import ApiError
from profuser.serving.options import NONE
from profuser.serving.requests import CHAT, RESPONSES

EFFORTS = ("reasoning_effort", "enable_thinking", "thinking")
"""Variables of a template on which a request's reasoning effort has an effect."""
FORMATS = ("text", "json_object", "json_schema", "structural_tag")
MEDIA = ("image", "audio", "video")
FUNCTIONS = ("function", "namespace")
"""Types of tools that the client runs."""
OUTDATED = {"functions": "tools", "function_call": "tool_choice"}
"""Fields of an older version of OpenAI's API, which vLLM ignores, and what replaced them."""
STATELESS = "this server keeps no responses: send the whole conversation as `input`, and leave `store` out or false"
FLAG = re.compile(r"`?--([a-z][a-z-]+[a-z])`?")


@dataclass(frozen=True)
class Abilities:
    """What a replica is configured for.

    Attributes:
        reasoning_parser: its name, or `none`.
        tool_parser: its name, or `none`.
        variables: variables of the chat template; None if the prompt is not made by a Jinja template (Mistral's own tokenizers,
            gpt-oss), or there is none.
        has_template: whether there are prompts for chats.
        media: which of `MEDIA` the model reads.
        max_logprobs: most log-probabilities per token; -1 for any number.
        has_priorities: whether requests may have priorities.
    """

    reasoning_parser: str = NONE
    tool_parser: str = NONE
    variables: frozenset[str] | None = None
    has_template: bool = True
    media: frozenset[str] = frozenset()
    max_logprobs: int = 20
    has_priorities: bool = False


def template_variables(template: str) -> frozenset[str]:
    """Returns the variables that a chat template reads."""
    return frozenset(meta.find_undeclared_variables(JINJA.parse(template)))


def check_needs(path: str, fields: Mapping[str, Any], able: Abilities) -> None:
    """Checks a request against what its model is configured for.

    Raises:
        ApiError: 400, with the setting that is missing.
    """
    if path not in (CHAT, RESPONSES):
        _check_numbers(fields, able)
        return
    if not able.has_template:
        raise _missing("The model has no chat template", "chat_template", "messages")
    _check_tools(path, fields, able)
    _check_thinking(fields, able)
    _check_media(fields, able)
    _check_format(fields)
    _check_numbers(fields, able)
    if path == RESPONSES:
        _check_state(fields)


def own_words(body: bytes) -> bytes:
    """Returns the body of an error in which flags of vLLM are named as the setting that takes them."""
    if b"--" not in body:
        return body
    try:
        answer = json.loads(body)
        message = answer["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return body
    words = FLAG.sub(lambda flag: f"`options: {{{flag[1].replace('-', '_')}: ...}}` of the served model", str(message))
    return json.dumps(answer | {"error": answer["error"] | {"message": words}}).encode()


def _missing(what: str, key: str, param: str, value: str = "NAME") -> ApiError:
    """Returns the error for a setting of `profuser serve` that a request needs."""
    flag = f"--{key.replace('_', '-')}"
    how = f"start it with `profuser serve {flag} {value}`, or set `{key}` of the model in its config file"
    return ApiError(400, f"{what}; {how}.", "not_configured", param)


def _unsupported(what: str, param: str) -> ApiError:
    return ApiError(400, f"{param}: {what}.", "unsupported", param)


def _check_tools(path: str, fields: Mapping[str, Any], able: Abilities) -> None:
    for name, instead in OUTDATED.items():
        if fields.get(name) is not None:
            raise _unsupported(f"not supported; use `{instead}`", name)
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if path == RESPONSES and isinstance(kind, str) and kind not in FUNCTIONS:
            raise _unsupported(f"the server has no tool {kind!r}; declare functions, which your program runs", "tools")
    if not tools or choice == "none":
        return
    if able.tool_parser == NONE:
        raise _missing("The request has tools, and the model has no tool parser", "tool_parser", "tools")
    if able.variables is not None and "tools" not in able.variables:
        raise _missing("The chat template of the model does not show it tools", "chat_template", "tools", "FILE")


def _check_thinking(fields: Mapping[str, Any], able: Abilities) -> None:
    given = fields.get("reasoning")
    reasoning = given if isinstance(given, dict) else {}
    name, effort = "reasoning_effort", fields.get("reasoning_effort")
    if reasoning.get("effort") is not None:
        name, effort = "reasoning.effort", reasoning["effort"]
    variables = able.variables
    if effort is not None and variables is not None and not variables & set(EFFORTS):
        raise _unsupported("the chat template of the model has no setting of reasoning", name)
    for needed, wanted in (
        (name, effort not in (None, "none")),
        ("thinking_token_budget", fields.get("thinking_token_budget") is not None),
        ("include_reasoning", fields.get("include_reasoning") is False),
    ):
        if wanted and able.reasoning_parser == NONE:
            what = f"{needed}: the model has no reasoning parser, which separates its reasoning from the answer"
            raise _missing(what, "reasoning_parser", needed)
    if reasoning.get("summary") not in (None, "auto"):
        raise _unsupported("there are no summaries; the reasoning itself is in `content`", "reasoning.summary")
    if fields.get("chat_template") is not None:
        raise _missing("A request cannot bring a chat template", "chat_template", "chat_template", "FILE")
    arguments = fields.get("chat_template_kwargs")
    unknown = sorted(set(arguments) - variables) if isinstance(arguments, dict) and variables is not None else []
    if unknown:
        known = ", ".join(sorted(variables or ())) or "none"
        raise _unsupported(
            f"the chat template reads no variable {unknown[0]!r}; it reads: {known}", "chat_template_kwargs"
        )


def _check_media(fields: Mapping[str, Any], able: Abilities) -> None:
    for kind in _part_types(fields.get("messages", fields.get("input"))):
        for media in MEDIA:
            if media in kind and media not in able.media:
                raise ApiError(400, f"The model reads no {media} (a part of type {kind!r}).", "unsupported", "messages")


def _part_types(turns: Any) -> Iterator[str]:
    for turn in turns if isinstance(turns, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(part.get("type"), str):
                yield part["type"]


def _check_format(fields: Mapping[str, Any]) -> None:
    text = fields.get("text")
    for name, given in (
        ("response_format", fields.get("response_format")),
        ("text.format", text.get("format") if isinstance(text, dict) else None),
    ):
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind not in FORMATS:
            raise _unsupported(f"no type {kind!r}; there are: {', '.join(FORMATS)}", name)


def _check_numbers(fields: Mapping[str, Any], able: Abilities) -> None:
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        value = fields.get(name)
        if type(value) is int and able.max_logprobs != -1 and value > able.max_logprobs:
            what = f"at most {able.max_logprobs}; `options: {{max_logprobs: {value}}}` of the served model allows more"
            raise _unsupported(what, name)
    if type(priority := fields.get("priority")) is int and priority != 0 and not able.has_priorities:
        what = "requests have no priorities; `options: {scheduling_policy: priority}` of the served model turns them on"
        raise _unsupported(what, "priority")


def _check_state(fields: Mapping[str, Any]) -> None:
    for name in ("previous_response_id", "conversation", "background", "store"):
        if fields.get(name):
            raise _unsupported(STATELESS, name)
    include = fields.get("include")
    if isinstance(include, list) and "reasoning.encrypted_content" in include:
        raise _unsupported("reasoning is not encrypted here; it is in the item's `content`", "include")
