"""Parses a request for a completion: enough to find the model and to check the key's limits.

vLLM checks everything else, and refuses what it does not accept with 400 and the reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profuser.serving.errors import ApiError, unknown_model
from profuser.serving.options import Limits

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MAX_TOKENS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
}
"""Fields that bound an answer; the first one is set if a request has none."""
DEFAULT_TOKENS = {CHAT: None, COMPLETIONS: 16, RESPONSES: None}
"""Default bound of an answer, as in OpenAI's API."""
PROMPT_FIELDS = {
    CHAT: ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    COMPLETIONS: ("prompt",),
    RESPONSES: ("input", "instructions", "tools", "tool_choice", "chat_template_kwargs"),
}
"""Fields that make up a prompt. vLLM ignores those of the other path, so they must not be counted instead."""


TEXT_AS_TEXT = {"tokenize": True, "sanitize_control_tokens": True}


@dataclass(frozen=True)
class ApiRequest:
    """A request that may be sent to its model."""

    path: str
    model: str
    """Name in the API: a model's, or that of a LoRA adapter."""
    fields: Mapping[str, Any]
    body: bytes
    """JSON that is sent to the model."""
    base: str = ""
    """The served model that answers, if `model` is an adapter's name."""

    @property
    def served(self) -> str:
        """Name of the served model that answers."""
        return self.base or self.model

    @property
    def wants_stream(self) -> bool:
        """Whether to stream the answer."""
        return self.fields.get("stream") is True

    @property
    def repeatable(self) -> bool:
        """Whether another replica gives the same text, so that an interrupted stream can continue there."""
        fixed = self.fields.get("temperature") == 0 or isinstance(self.fields.get("seed"), int)
        plain = not any(self.fields.get(name) for name in ("logprobs", "tools", "return_token_ids", "echo"))
        return fixed and plain and self.path != RESPONSES

    @property
    def questions(self) -> list[dict[str, Any] | int]:
        """For each prompt, the body of a tokenize request that counts its tokens, or the number of tokens if it is given as ids."""
        names = ("model", "add_special_tokens", *PROMPT_FIELDS[self.path])
        whole = {name: self.fields[name] for name in names if name in self.fields}
        prompts = whole.get("prompt")
        if not isinstance(prompts, list):
            return [whole]
        if any(isinstance(each, int) for each in prompts):
            return [len(prompts)]
        return [len(each) if isinstance(each, list) else whole | {"prompt": each} for each in prompts]


def read_request(
    path: str, body: bytes, models: Sequence[str], limits: Limits, adapters: Mapping[str, str] | None = None
) -> ApiRequest:
    """Parses a body.

    Args:
        path: the request's path.
        body: JSON.
        models: names of the served models.
        limits: limits of the key.
        adapters: names of LoRA adapters, each with the model that serves it.

    Raises:
        ApiError: 400, it is not a JSON object; 404, there is no such model; 422, it requests more tokens than its key may.
    """
    fields = _parse(body)
    if not isinstance(fields, dict):
        raise ApiError(400, "The body is not a JSON object.", "invalid_json")
    model, known = fields.get("model"), [*models, *(adapters or {})]
    if not isinstance(model, str):
        raise ApiError(400, f"Set `model` to one of: {', '.join(known)}.", "missing_model", "model")
    if model not in known:
        raise unknown_model(model, known)
    if limits.max_tokens is not None and (more := _bounded(path, fields, limits.max_tokens)):
        fields |= more
        body = json.dumps(fields).encode()
    return ApiRequest(path, model, fields, body, (adapters or {}).get(model, ""))


def escape_special_tokens(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Makes vLLM read special tokens that are spelt out in messages as text, and not as control tokens.

    By default vLLM renders messages and template into one string, in which a `<|im_end|>` written by a client ends a turn.
    Transformers has an option to prevent that, which vLLM passes on if the template is also tokenized by Transformers.
    """
    given = fields.get("chat_template_kwargs")
    if not {"messages", "input"} & fields.keys() or not isinstance(given, dict | None):
        return fields
    return {**fields, "chat_template_kwargs": {**(given or {}), **TEXT_AS_TEXT}}


def _parse(body: bytes) -> Any:
    """Parses strict JSON in UTF-8; NaN and excessive depth are refused."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", "invalid_json") from None


def _bounded(path: str, fields: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Returns the fields that add a bound to a request; raises ApiError if its own is too high."""
    num = max(_integer(fields, "n") or 1, 1) * _num_prompts(fields)
    asked = [value for name in MAX_TOKENS[path] if (value := _integer(fields, name)) is not None]
    tokens = max(asked, default=1)
    if num * tokens > most:
        name = next((name for name in MAX_TOKENS[path] if fields.get(name) is not None), "n")
        raise ApiError(
            422, f"{num:,} x {tokens:,} tokens were requested; this key may have {most:,}.", "too_many_tokens", name
        )
    return {} if asked else {MAX_TOKENS[path][0]: min(most // num, DEFAULT_TOKENS[path] or most)}


def _integer(fields: Mapping[str, Any], name: str) -> int | None:
    """Returns a JSON integer. vLLM would also accept "100", which would evade the limits here."""
    value = fields.get(name)
    if value is not None and type(value) is not int:
        raise ApiError(400, f"{name}: expected an integer.", "invalid_type", name)
    return value


def _num_prompts(fields: Mapping[str, Any]) -> int:
    """Counts the prompts: each text or list of tokens gets an answer."""
    prompt = fields.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def check_prompt(num_tokens: int, limits: Limits) -> None:
    """Raises ApiError, 422, if a prompt is longer than the key may send."""
    if limits.max_prompt_tokens is not None and num_tokens > limits.max_prompt_tokens:
        raise ApiError(
            422,
            f"The prompt has {num_tokens:,} tokens; this key may send {limits.max_prompt_tokens:,}.",
            "prompt_too_long",
            "messages",
        )
