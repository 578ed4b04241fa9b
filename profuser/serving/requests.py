"""A request for a completion as the gateway reads it: enough to find the model and to hold it against the key's limits.

All else is vLLM's to check: what it does not take, it refuses with 400 and the reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profuser.serving.errors import ApiError, unknown_model
from profuser.serving.options import Limits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_TOKENS = {CHAT: ("max_completion_tokens", "max_tokens"), COMPLETIONS: ("max_tokens",)}
"""Fields that bound an answer; the first is what is set where a request has none."""
DEFAULT_TOKENS = {CHAT: None, COMPLETIONS: 16}
"""What an answer is bounded by where nobody says: OpenAI's default."""


@dataclass(frozen=True)
class ApiRequest:
    """A request that may go to its model."""

    path: str
    model: str
    fields: Mapping[str, Any]
    body: bytes
    """In JSON, as it goes to the model."""

    @property
    def wants_stream(self) -> bool:
        """Whether the answer comes piece by piece."""
        return self.fields.get("stream") is True

    @property
    def repeatable(self) -> bool:
        """Whether another replica gives the same text: then a stream that breaks off can go on there."""
        fixed = self.fields.get("temperature") == 0 or isinstance(self.fields.get("seed"), int)
        plain = not any(self.fields.get(name) for name in ("logprobs", "tools", "return_token_ids", "echo"))
        return fixed and plain

    @property
    def question(self) -> dict[str, Any]:
        """What has to be tokenized to count the prompt."""
        names = ("model", "messages", "prompt", "tools", "chat_template_kwargs", "add_generation_prompt")
        return {name: self.fields[name] for name in names if name in self.fields}


def read_request(path: str, body: bytes, models: Sequence[str], limits: Limits) -> ApiRequest:
    """Reads a body.

    Raises:
        ApiError: 400, it is no JSON object; 404, there is no such model; 422, it asks for more tokens than its key may.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", "invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The body is not a JSON object.", "invalid_json")
    model = fields.get("model")
    if not isinstance(model, str):
        raise ApiError(400, f"Name a model: {', '.join(models)}.", "missing_model", "model")
    if model not in models:
        raise unknown_model(model, list(models))
    if limits.max_tokens is not None and (more := _bounded(path, fields, limits.max_tokens)):
        fields |= more
        body = json.dumps(fields).encode()
    return ApiRequest(path, model, fields, body)


def _bounded(path: str, fields: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What to add to a request so that it has a bound; ApiError where its own is too high."""
    num = fields.get("n")
    num = num if isinstance(num, int) and num > 0 else 1
    asked = [value for name in MAX_TOKENS[path] if isinstance(value := fields.get(name), int)]
    tokens = max(asked, default=DEFAULT_TOKENS[path])
    if num * (tokens or 1) > most:
        name = next((name for name in MAX_TOKENS[path] if name in fields), "n")
        raise ApiError(
            422, f"{num} x {tokens or 1:,} tokens are asked for; this key may have {most:,}.", "too_many_tokens", name
        )
    return {} if tokens is not None else {MAX_TOKENS[path][0]: most // num}


def check_prompt(num_tokens: int, limits: Limits) -> None:
    """Raises ApiError, 422, where a prompt is longer than the key may send."""
    if limits.max_prompt_tokens is not None and num_tokens > limits.max_prompt_tokens:
        raise ApiError(
            422,
            f"The prompt has {num_tokens:,} tokens; this key may send {limits.max_prompt_tokens:,}.",
            "prompt_too_long",
            "messages",
        )
