"""OpenAI's client against a gateway on a real socket: it reads answers, and raises the right class for every error."""

import asyncio
import json

import openai
import pytest

from profuser.serving.errors import interrupted, overloaded
from tests.serving.fake_backend import ALICE, DONE, EVENTS, JSON, Fake, Head, event, limits, listening

MESSAGES = [{"role": "user", "content": "Hi"}]
WHOLE = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "fused",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}
USAGE = b'data: {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "fused", "choices": []}\n\n'


@pytest.fixture
def serve(tmp_path):
    """Starts a gateway over these steps; returns a client of it and its backend."""
    servers = []

    def start(*steps, key=ALICE, **values):
        to = limits(tmp_path, Fake(*steps), **values)
        servers.append(listening(to))
        client = openai.OpenAI(api_key=key, base_url=f"{servers[-1].__enter__()}/v1", max_retries=0, timeout=30)
        return client, to.backend

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def ask(client, model="fused", **options):
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def test_answers_and_models_are_read(serve):
    client, backend = serve(JSON, json.dumps(WHOLE).encode())
    assert ask(client, temperature=0).choices[0].message.content == "Hello"
    assert [model.id for model in client.models.list()] == ["fused", "org/source"]
    assert client.models.retrieve("org/source").id == "org/source"
    assert backend.asked[0][0].fields == {"model": "fused", "messages": MESSAGES, "temperature": 0}


def test_a_stream_is_read(serve):
    parts = [event("", delta={"role": "assistant", "content": ""}), event("Hel"), event("lo", finish_reason="stop")]
    client, _ = serve(EVENTS, *parts, USAGE + DONE)
    chunks = list(ask(client, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, None, "stop"]


BAD_REQUEST = [Head(400, "application/json"), b'{"error": {"message": "top_p", "type": "e", "code": 400}}']
REFUSED = {
    "no such key": ([JSON], {"key": "sk-nobody-has-this-key"}, {}, openai.AuthenticationError),
    "no such model": ([JSON], {}, {"model": "nothing"}, openai.NotFoundError),
    "the model refuses": (BAD_REQUEST, {}, {}, openai.BadRequestError),
    "too many tokens": ([JSON], {"max_tokens": 9}, {"max_tokens": 10}, openai.UnprocessableEntityError),
    "too long a prompt": ([JSON], {"max_prompt_tokens": 9}, {}, openai.UnprocessableEntityError),
    "too large a body": ([JSON], {"max_body_bytes": 9}, {}, openai.APIStatusError),
    "all replicas are busy": ([overloaded("fused")], {}, {}, openai.RateLimitError),
    "the replica is lost": ([interrupted()], {}, {}, openai.InternalServerError),
    "a bug": ([RuntimeError("secret")], {}, {}, openai.InternalServerError),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("steps", "server", "asked", "error"), REFUSED.values(), ids=REFUSED)
def test_errors_are_the_clients_own_classes(serve, steps, server, asked, error, stream):
    client, backend = serve(*steps, **server)
    backend.tokens = 10
    with pytest.raises(error) as caught:
        ask(client, stream=stream, **asked)
    assert caught.value.message
    assert caught.value.code
    assert "secret" not in str(caught.value)


def test_an_error_within_a_stream_is_raised_after_the_pieces_before_it(serve):
    client, _ = serve(EVENTS, event("Hel"), interrupted())
    chunks = ask(client, stream=True)
    assert next(chunks).choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError, match="replica was lost") as caught:
        next(chunks)
    assert caught.value.code == "replica_lost"


def test_too_many_requests_are_a_rate_limit_and_a_disconnect_releases_the_slot(serve):
    client, _ = serve(EVENTS, event("Hel"), asyncio.Event(), concurrency=1)
    with ask(client, stream=True) as chunks:
        next(chunks)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
        assert caught.value.response.headers["retry-after"] == "1"
    retrying = client.with_options(max_retries=5)  # the client's own retries, after the time in Retry-After
    with ask(retrying, stream=True) as chunks:
        assert next(chunks).choices[0].delta.content == "Hel"
