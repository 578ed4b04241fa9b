"""The engine of a source behind a server: it sends requests concurrently, in the one thread that drives an engine."""

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from profuser.artifacts.schemas import ANSWER_VOCABULARY_SIZE
from profuser.engines.base import Request, Response, Usage
from profuser.engines.endpoint.client import EndpointClient, RefusedRequestError
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.engines.endpoint.requests import (
    chat_body,
    choice_of,
    forced_body,
    openai_messages,
    read_chat,
    read_forced,
    read_step,
    refusal_of,
    step_body,
    usage_of,
)
from profuser.engines.endpoint.tokens import ServedTokens, unscored
from profuser.recipe.endpoints import EndpointConfig

STEP_SECONDS = 0.05
"""Longest wait for a response in one step; meanwhile new requests cannot be sent."""
UNLIMITED = 1 << 30
"""Context of a model whose server does not say it, or limits it by tokens that are not known here: the server refuses rows."""


class EndpointEngine:
    """An OpenAI-compatible server as an engine, see `SourceEngine`.

    Args:
        endpoint: the server.
        facts: what it gives.
        key: key to send.
        tokens: the model's tokens, or bytes if its tokenizer is not known.
    """

    def __init__(self, endpoint: EndpointConfig, facts: EndpointFacts, key: SecretStr | None, tokens: ServedTokens):
        self.endpoint, self.facts, self.tokens = endpoint, facts, tokens
        self.tokenizer, self.end_ids = tokens.tokenizer, list(tokens.end_ids)
        self.vocab_size = ANSWER_VOCABULARY_SIZE if self.own_vocabularies else tokens.tokens.vocab_size
        self.max_model_len = UNLIMITED if self.in_bytes or not facts.max_model_len else facts.max_model_len
        self.client = EndpointClient(endpoint, key)
        self.usage = Usage()
        self._loop = asyncio.new_event_loop()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._sent: dict[asyncio.Task[Response], int] = {}

    @property
    def forces(self) -> bool:
        """Whether it can teacher-force a response."""
        return self.facts.forces

    @property
    def in_bytes(self) -> bool:
        """Whether the tokenizer is not known: its ids are bytes, except of answers with their own vocabularies."""
        return self.endpoint.tokenizer is None

    @property
    def own_vocabularies(self) -> bool:
        """Whether answers with distributions have their own vocabularies: the server gives bytes, the tokenizer is not known."""
        return self.in_bytes and self.facts.top_logprobs is not None

    @property
    def num_running(self) -> int:
        """Number of requests in flight."""
        return len(self._sent)

    @property
    def num_tokens(self) -> int:
        """Tokens read and generated, as the server counts them."""
        return self.usage.input_tokens + self.usage.output_tokens

    def add(self, number: int, request: Request) -> None:
        """See `SourceEngine.add`."""
        self._waiting.append((number, request))

    def step(self) -> list[tuple[int, Response]]:
        """See `SourceEngine.step`: sends what the concurrency allows and waits for the next responses, for a moment."""
        while self._waiting and len(self._sent) < self.endpoint.concurrency:
            number, request = self._waiting.popleft()
            self._sent[self._loop.create_task(self._respond(request))] = number
        waited = asyncio.wait(self._sent, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        done, _ = self._loop.run_until_complete(waited)
        return [(self._sent.pop(task), task.result()) for task in done]

    def close(self) -> None:
        """Closes the connections; requests in flight are cancelled."""
        for task in self._sent:
            task.cancel()
        self._loop.run_until_complete(self.client.close())
        self._loop.close()

    async def _respond(self, request: Request) -> Response:
        if request.response_ids is not None and not self.forces:
            return unscored(request.response_ids, request.top_k, "given")
        path, body = self._body(request)
        num_tokens = len(request.prompt_ids) + len(request.response_ids or ()) + max(1, request.max_tokens)
        try:
            content = await self.client.send(path, body, num_tokens)
            choice = choice_of(content)
        except RefusedRequestError as refusal:
            return replace(unscored([], request.top_k, "refused"), refusal=f"the server refuses it: {refusal.reason}")
        usage = usage_of(content)
        self.usage = self.usage + usage
        return replace(self._read(choice, request), usage=usage)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Returns the path and body of a request."""
        top_k = min(request.top_k, self.facts.top_logprobs or 0)
        if request.response_ids is not None:
            return "/completions", forced_body(self.endpoint, request.prompt_ids + request.response_ids, top_k)
        if request.messages is None:
            return "/completions", step_body(self.endpoint, request.prompt_ids, top_k)
        asked = None if self.facts.top_logprobs is None or (self.in_bytes and not top_k) else top_k
        return "/chat/completions", chat_body(
            self.endpoint,
            self.facts,
            openai_messages(request.messages),
            request.generation,
            request.max_tokens,
            request.seed,
            request.stop,
            asked,
        )

    def _read(self, choice: dict[str, Any], request: Request) -> Response:
        if request.response_ids is not None:
            return read_forced(choice, request)
        if request.messages is None:
            return read_step(choice, request, self.tokens)
        if reason := refusal_of(choice):
            return replace(unscored([], request.top_k, "refused"), refusal=reason)
        tokens = None if self.own_vocabularies and request.top_k else self.tokens
        return read_chat(choice, tokens, request.top_k, request.stop)
