"""Asks a server by a few first requests what it serves and gives, before a run depends on it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
from pydantic import SecretStr

from profuser.engines.base import GREEDY
from profuser.engines.endpoint.client import EndpointClient, EndpointError, RefusedRequestError
from profuser.engines.endpoint.facts import LENGTH_FIELDS, EndpointFacts
from profuser.engines.endpoint.requests import chat_body, choice_of, entries_of, forced_body, reason_of, text_of
from profuser.engines.endpoint.spelt import read_spelt
from profuser.engines.endpoint.tokens import ServedTokens
from profuser.errors import UserError
from profuser.recipe.endpoints import EndpointConfig
from profuser.recipe.models import GenerationConfig

QUESTION = "Say in one sentence what the sea is."
ANSWER_TOKENS = 16
"""Longest answer to the question; some servers allow no less."""
FEWER_LOGPROBS = (20, 5)
"""Limits of common servers, tried if they refuse more candidates."""
CANNOT = frozenset({404, 405, 500, 501})
"""Statuses with which servers answer a request that they do not know, after they have answered another."""


def ask(
    endpoint: EndpointConfig,
    setting: str,
    key: SecretStr | None,
    generation: GenerationConfig,
    top_k: int,
    tokens: ServedTokens | None,
) -> EndpointFacts:
    """Asks a server what it gives.

    Args:
        endpoint: the server.
        setting: key of its section in the recipe, for errors.
        key: key to send.
        generation: settings of the answers.
        top_k: K of the distributions.
        tokens: tokens of the recipe's tokenizer; None for an endpoint without one. Of that, distributions are requested if `top_k`
            is above 0.

    Raises:
        UserError: the server cannot be reached, serves no such model, refuses an answer with these settings, or has another
            tokenizer; the message names the key.
    """

    async def given(client: EndpointClient) -> EndpointFacts:
        return await _given(client, setting, await _served(client, setting), generation, top_k, tokens)

    return _asked(endpoint, setting, key, given)


def ask_judge(endpoint: EndpointConfig, setting: str, key: SecretStr | None) -> EndpointFacts:
    """Asks a judge's server what it serves and how many candidates it gives per token; arguments and errors as in `ask`."""

    async def given(client: EndpointClient) -> EndpointFacts:
        facts = replace(await _served(client, setting), top_logprobs=FEWER_LOGPROBS[0])
        facts, choice = await _answer(client, facts, GREEDY)
        return facts if entries_of(choice) else replace(facts, top_logprobs=None)

    return _asked(endpoint, setting, key, given)


def _asked(
    endpoint: EndpointConfig,
    setting: str,
    key: SecretStr | None,
    given: Callable[[EndpointClient], Awaitable[EndpointFacts]],
) -> EndpointFacts:
    """Runs first requests with a client of their own."""

    async def asked() -> EndpointFacts:
        client = EndpointClient(endpoint.model_copy(update={"retry_seconds": min(endpoint.retry_seconds, 60.0)}), key)
        try:
            return await given(client)
        finally:
            await client.close()

    try:
        return asyncio.run(asked())
    except EndpointError as error:
        raise UserError(f"{setting}: {error}") from None
    except RefusedRequestError as refusal:
        raise UserError(
            f"{setting}: {endpoint.base_url} refuses a first request: {refusal.reason}; change the source's generation or "
            "endpoint.options to what the server allows"
        ) from None


async def _served(client: EndpointClient, setting: str) -> EndpointFacts:
    """Returns the model's entry in the server's list; a server without a list is believed."""
    endpoint = client.endpoint
    try:
        listed = (await client.send("/models")).get("data") or []
    except RefusedRequestError:
        listed = []
    except EndpointError as error:
        if error.status != httpx.codes.NOT_FOUND:
            raise
        listed = []
    if not listed:
        return EndpointFacts(endpoint.model)
    named = {str(entry.get("id")): entry for entry in listed}
    if endpoint.model not in named:
        raise UserError(
            f"{setting}.model: {endpoint.base_url} serves no {endpoint.model!r}; it serves {', '.join(sorted(named)[:20])}"
        )
    entry = named[endpoint.model]
    length = entry.get("max_model_len")
    root = entry.get("root")
    return EndpointFacts(endpoint.model, root and str(root), length if isinstance(length, int) else None)


async def _given(
    client: EndpointClient,
    setting: str,
    facts: EndpointFacts,
    generation: GenerationConfig,
    top_k: int,
    tokens: ServedTokens | None,
) -> EndpointFacts:
    """Returns the facts with what the server gives along a first answer, and whether it teacher-forces."""
    if tokens is None:
        return await _given_in_bytes(client, facts, generation, top_k)
    facts, choice = await _answer(client, replace(facts, top_logprobs=top_k, token_ids=True), generation)
    entries = entries_of(choice)
    if facts.top_logprobs is not None and not entries:
        facts = replace(facts, top_logprobs=None, token_ids=False)
    elif entries:
        found = tokens.read(text_of(choice), reason_of(choice), entries, facts.top_logprobs or 0)
        if found is None:
            raise UserError(
                f"{setting}.tokenizer: the tokens of a first answer of {client.endpoint.base_url} are not those of "
                f"{client.endpoint.tokenizer} (or the server writes them without their spaces); name the tokenizer of "
                f"{client.endpoint.model}, or none"
            )
        facts = replace(facts, token_ids=str(entries[0]["token"]).startswith("token_id:"))
    return replace(facts, forces=await _forces(client, facts, tokens, top_k))


async def _given_in_bytes(
    client: EndpointClient, facts: EndpointFacts, generation: GenerationConfig, top_k: int
) -> EndpointFacts:
    """Returns the facts of a server whose tokenizer is not known: whether it gives tokens with bytes that join to its answers."""
    if not top_k:
        return (await _answer(client, facts, generation))[0]
    try:
        found, choice = await _answer(client, replace(facts, top_logprobs=top_k), generation)
    except (EndpointError, RefusedRequestError) as error:
        if isinstance(error, EndpointError) and error.status not in CANNOT:
            raise
        return (await _answer(client, facts, generation))[0]
    text, entries = text_of(choice), entries_of(choice)
    joins = read_spelt(text, reason_of(choice), entries, top_k) is not None
    # Some servers lose the bytes of parts of characters: such an answer says nothing of others.
    joins |= not text.isascii() and any(entry.get("bytes") for entry in entries)
    return found if joins else replace(found, top_logprobs=None)


async def _answer(
    client: EndpointClient, facts: EndpointFacts, generation: GenerationConfig
) -> tuple[EndpointFacts, dict[str, Any]]:
    """Returns a first answer; what the server refuses by name is left out, and the facts say so."""
    asked = generation.model_copy(update={"max_tokens": ANSWER_TOKENS})
    messages = [{"role": "user", "content": QUESTION}]
    while True:
        body = chat_body(client.endpoint, facts, messages, asked, ANSWER_TOKENS, 0, (), facts.top_logprobs)
        try:
            return facts, choice_of(await client.send("/chat/completions", body))
        except RefusedRequestError as refusal:
            fewer = _without(facts, f"{refusal.parameter} {refusal.reason}")
            if fewer is None:
                raise
            facts = fewer


def _without(facts: EndpointFacts, refusal: str) -> EndpointFacts | None:
    """Returns the facts without the field that a refusal names; None if it names none that can be left out."""
    if facts.token_ids and "return_tokens_as_token_ids" in refusal:
        return replace(facts, token_ids=False)
    if facts.length_field == LENGTH_FIELDS[0] and LENGTH_FIELDS[1] in refusal:
        return replace(facts, length_field=LENGTH_FIELDS[1])
    if facts.top_logprobs is not None and "logprobs" in refusal:
        fewer = next((limit for limit in FEWER_LOGPROBS if limit < facts.top_logprobs), None)
        return replace(facts, top_logprobs=fewer)
    if facts.seed and "seed" in refusal:
        return replace(facts, seed=False)
    # A server that names no field may be one that does not know vLLM's.
    return replace(facts, token_ids=False) if facts.token_ids else None


async def _forces(client: EndpointClient, facts: EndpointFacts, tokens: ServedTokens, top_k: int) -> bool:
    """Returns whether the server gives the log-probabilities of a given response; raises EndpointError if it is unusable now."""
    assert tokens.tokens.bare is not None
    ids = tokens.tokens.bare.encode(QUESTION, add_special_tokens=False).ids
    body = forced_body(client.endpoint, ids, min(top_k, facts.top_logprobs or top_k))
    try:
        choice = choice_of(await client.send("/completions", body))
    except RefusedRequestError:
        return False
    except EndpointError as error:
        if error.status not in CANNOT:
            raise
        return False
    found = choice.get("prompt_logprobs")
    return isinstance(found, list) and len(found) == len(ids) and str(ids[-1]) in (found[-1] or {})
