"""Builds the bodies of requests to a server, and reads its answers."""

from collections.abc import Sequence
from typing import Any

from profuser.corpus import Message
from profuser.corpus.tool_turns import forms
from profuser.engines.base import Request, Response, Usage
from profuser.engines.endpoint.client import RefusedRequestError
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.engines.endpoint.spelt import read_spelt, spelt_text
from profuser.engines.endpoint.tokens import ServedTokens, logprob, response
from profuser.errors import one_line
from profuser.recipe.endpoints import EndpointConfig
from profuser.recipe.models import GenerationConfig

MAX_STOPS = 4
"""Texts to stop at that OpenAI's interface takes; what follows the others is cut off when the answer is read."""


def chat_body(
    endpoint: EndpointConfig,
    facts: EndpointFacts,
    messages: Sequence[dict[str, Any]],
    generation: GenerationConfig,
    max_tokens: int,
    seed: int,
    stop: Sequence[str],
    top_logprobs: int | None,
) -> dict[str, Any]:
    """Returns the body of a chat request. Settings beyond OpenAI's interface are sent only where the recipe sets them.

    Args:
        endpoint: the server.
        facts: what it takes.
        messages: the conversation, in OpenAI's form.
        generation: sampling settings.
        max_tokens: longest answer.
        seed: sampling seed.
        stop: texts that end the answer.
        top_logprobs: candidates per position; None to ask for no log-probabilities.
    """
    body: dict[str, Any] = {"model": endpoint.model, "messages": list(messages), "temperature": generation.temperature}
    body[facts.length_field] = max_tokens
    unset = GenerationConfig()
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        if getattr(generation, name) != getattr(unset, name):
            body[name] = getattr(generation, name)
    if facts.seed:
        body["seed"] = seed
    if stop:
        body["stop"] = list(stop[:MAX_STOPS])
    if top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if facts.token_ids:
            body["return_tokens_as_token_ids"] = True
    return body | endpoint.options


def forced_body(endpoint: EndpointConfig, ids: list[int], top_k: int) -> dict[str, Any]:
    """Returns the body of a request for the distributions along given tokens (vLLM)."""
    return {"model": endpoint.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top_k}


def step_body(endpoint: EndpointConfig, ids: list[int], top_k: int) -> dict[str, Any]:
    """Returns the body of a request for the distribution of the token after given ones (vLLM)."""
    asked = {"logprobs": top_k, "return_tokens_as_token_ids": True}
    return {"model": endpoint.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, **asked}


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns a conversation in OpenAI's form, where the arguments of a tool call are JSON text."""
    return [*forms(messages)][-1]


def text_of(choice: dict[str, Any]) -> str:
    """Returns the text of a chat answer."""
    return (choice.get("message") or {}).get("content") or ""


def reason_of(choice: dict[str, Any]) -> str:
    """Returns why an answer ended, as in `Response.finish_reason`."""
    return "length" if choice.get("finish_reason") == "length" else "stop"


def entries_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the tokens of a chat answer with their log-probabilities; empty if the server gives none."""
    return (choice.get("logprobs") or {}).get("content") or []


def choice_of(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the one choice of an answer; raises RefusedRequestError if there is none."""
    choices = content.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise RefusedRequestError(f"its answer has no choices: {one_line(str(content), 120)}")
    return choices[0]


def usage_of(content: dict[str, Any]) -> Usage:
    """Returns the tokens that the server counted; none if it counts none."""
    found = content.get("usage") or {}
    return Usage(found.get("prompt_tokens") or 0, found.get("completion_tokens") or 0)


def refusal_of(choice: dict[str, Any]) -> str | None:
    """Returns why the model or the server's filter refuses to answer; None if it answers."""
    message = choice.get("message") or {}
    if message.get("refusal"):
        return f"the model refuses it: {' '.join(str(message['refusal']).split())[:200]}"
    return "the server's content filter" if choice.get("finish_reason") == "content_filter" else None


def read_chat(choice: dict[str, Any], tokens: ServedTokens | None, top_k: int, stop: Sequence[str] = ()) -> Response:
    """Converts a chat answer, with its distributions if it has them in tokens of the tokenizer; without one, in its own."""
    text, reason, entries = text_of(choice), reason_of(choice), entries_of(choice)
    if tokens is None:
        return read_spelt(text, reason, entries, top_k, stop) or spelt_text(text, reason, top_k)
    found = tokens.read(text, reason, entries, top_k) if entries else None
    return found or tokens.without_distributions(text, reason, top_k)


def read_forced(choice: dict[str, Any], request: Request) -> Response:
    """Converts the distributions along a given response."""
    ids = request.response_ids or []
    found = choice["prompt_logprobs"][len(request.prompt_ids) :]
    own = [logprob(entry[str(index)]) for entry, index in zip(found, ids, strict=True)]
    tops = [((int(index), logprob(value)) for index, value in entry.items()) for entry in found]
    return response(ids, own, tops, request.top_k, "given")


def read_step(choice: dict[str, Any], request: Request, tokens: ServedTokens) -> Response:
    """Converts the distribution of one more token."""
    found = choice["logprobs"]
    ids = [tokens.id_of(name, None) or 0 for name in found["tokens"]]
    tops = [((tokens.id_of(name, None), value) for name, value in top.items()) for top in found["top_logprobs"]]
    return response(ids, found["token_logprobs"], tops, request.top_k, "length")
