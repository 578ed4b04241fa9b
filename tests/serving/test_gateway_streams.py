"""Streamed answers, and the slots of a key's concurrent requests: released however a request ends."""

import asyncio
import json

import httpx
import pytest

from profuser.serving.asgi import call
from profuser.serving.errors import ApiError, interrupted
from profuser.serving.requests import CHAT
from tests.serving.fake_backend import (
    ALICE,
    BOB,
    DONE,
    EVENTS,
    JSON,
    PROMPT,
    Fake,
    Head,
    asend,
    counted,
    error_of,
    event,
    headers,
    limits,
    listening,
    logged,
    send,
    until,
)

STREAM = PROMPT | {"stream": True}
BODY = json.dumps(STREAM).encode()


def one_at_a_time(folder, *steps):
    return limits(folder, Fake(*steps), concurrency=1)


def test_a_stream_is_passed_on_unchanged(tmp_path):
    to = one_at_a_time(tmp_path, EVENTS, event("a"), event("b") + event("c"), DONE)
    response = send(to, json=STREAM)
    assert response.content == event("a") + event("b") + event("c") + DONE
    assert response.headers["content-type"] == EVENTS.content_type
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    assert counted(to) == {("fused", CHAT, "alice", "200"): 1}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(interrupted(), 503, "replica_lost"), (RuntimeError("a secret"), 500, "internal_error")],
)
def test_an_error_within_a_stream_is_its_last_event(tmp_path, error, status, code):
    to = one_at_a_time(tmp_path, EVENTS, event("a"), error)
    with logged() as lines:
        response = send(to, json=STREAM)
    assert response.status_code == 200
    first, last, end = response.text.split("\n\n")[:3]
    assert [f"{first}\n\n".encode(), f"{end}\n\n".encode()] == [event("a"), DONE]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert "secret" not in response.text
    assert ("a secret" in "".join(lines)) == (status == 500)
    assert counted(to) == {("fused", CHAT, "alice", str(status)): 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_keys_concurrency_is_limited(tmp_path, stream):
    async def run():
        go = asyncio.Event()
        to = limits(tmp_path, Fake(EVENTS if stream else JSON, b"{}", go, b"."), concurrency=2)
        at_work = [asyncio.create_task(asend(to, json=PROMPT | {"stream": stream})) for _ in range(2)]
        while len(to.backend.asked) < 2:
            await asyncio.sleep(0)
        assert counted(to, "profuser_requests_in_flight") == {("alice",): 2}
        refused = await asend(to, json=PROMPT)
        assert error_of(refused, 429)["code"] == "too_many_requests"
        assert refused.headers["retry-after"] == "1"
        other = asyncio.create_task(asend(to, key=BOB, json=PROMPT))
        while len(to.backend.asked) < 3:
            await asyncio.sleep(0)
        go.set()
        assert [response.status_code for response in await asyncio.gather(*at_work, other)] == [200] * 3
        assert (await asend(to, json=PROMPT)).status_code == 200
        return to

    to = asyncio.run(run())
    assert counted(to) == {
        ("fused", CHAT, "alice", "200"): 3,
        ("fused", CHAT, "bob", "200"): 1,
        ("", CHAT, "alice", "429"): 1,
    }


ENDS = {
    "an answer": [JSON, b"{}"],
    "a stream": [EVENTS, event("a"), DONE],
    "an empty stream": [EVENTS],
    "an error before it begins": [interrupted()],
    "an error within it": [EVENTS, event("a"), interrupted()],
    "a bug before it begins": [RuntimeError()],
    "a bug within it": [EVENTS, event("a"), RuntimeError()],
    "a refusal": [Head(400, "application/json"), b"{}"],
    "a failure": [Head(500, "application/json"), b"{}"],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", ENDS.values(), ids=ENDS)
def test_a_slot_is_released_however_an_answer_ends(tmp_path, steps, stream):
    to = one_at_a_time(tmp_path, *steps)
    first, second = (send(to, json=PROMPT | {"stream": stream}) for _ in range(2))
    assert first.status_code == second.status_code != 429
    assert (to.backend.ended, to.in_flight["alice"]) == (2, 0)
    assert counted(to, "profuser_requests_in_flight") == {("alice",): 0}


@pytest.mark.parametrize("sent", [b"{", b"[" * 9999, b'{"model": "none"}'])
@pytest.mark.parametrize("tokens", [ApiError(400, "no", "invalid_prompt"), RuntimeError(), 9])
def test_a_refused_request_releases_its_slot(tmp_path, sent, tokens):
    to = limits(tmp_path, Fake(JSON, tokens=tokens), concurrency=1, max_prompt_tokens=1)
    for content in [sent, BODY] * 2:
        response = send(to, content=content, headers={"content-type": "application/json"})
        assert response.status_code in (400, 404, 422, 500)
    assert to.in_flight["alice"] == 0


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_disconnect_from_a_stream_releases_slot_and_model(tmp_path, pieces):
    """The client disconnects after the head, after a piece, and while it waits for another."""

    async def run():
        to = one_at_a_time(tmp_path, EVENTS, event("a"), asyncio.Event())
        answer = call(to.app(), CHAT, BODY, headers(ALICE))
        for _ in range(pieces):
            reading = asyncio.create_task(anext(answer))
            await asyncio.wait([reading], timeout=0.05)
        assert to.in_flight["alice"] == 1
        reading.cancel()
        await asyncio.wait([reading])
        await answer.aclose()
        while to.in_flight["alice"]:
            await asyncio.sleep(0.001)
        return to

    to = asyncio.run(asyncio.wait_for(run(), 30))
    assert to.backend.ended == 1
    assert counted(to) == {("fused", CHAT, "alice", "499"): 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_request_releases_slot_and_model(tmp_path, stream):
    """Ray Serve cancels a request whose client disconnects before the answer has begun."""

    async def run():
        to = one_at_a_time(tmp_path, JSON, asyncio.Event())
        waiting = asyncio.create_task(asend(to, json=PROMPT | {"stream": stream}))
        while not to.backend.asked:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return to

    to = asyncio.run(run())
    assert (to.backend.ended, to.in_flight["alice"]) == (1, 0)
    assert counted(to) == {("fused", CHAT, "alice", "499"): 1}


def test_a_broken_connection_ends_its_stream(tmp_path):
    to = one_at_a_time(tmp_path, EVENTS, event("a"), *[event("b" * 1000)] * 20, asyncio.Event())
    with listening(to) as address, httpx.Client(base_url=address, headers=headers(ALICE), timeout=30) as http:
        for number in (1, 2):
            with http.stream("POST", CHAT, json=STREAM) as response:
                assert response.status_code == 200
                pieces = response.iter_bytes()
                assert next(pieces)
                assert http.post(CHAT, json=STREAM).status_code == 429
            until(lambda number=number: to.backend.ended == number and to.in_flight["alice"] == 0)
    assert counted(to)["fused", CHAT, "alice", "499"] == 2


def test_an_incomplete_body_releases_its_slot(tmp_path):
    to = one_at_a_time(tmp_path, JSON, b"{}")

    def half():
        yield b'{"model":'
        raise KeyboardInterrupt

    with listening(to) as address, httpx.Client(base_url=address, headers=headers(ALICE), timeout=30) as http:
        with pytest.raises(KeyboardInterrupt):
            http.post(CHAT, content=half(), headers={"content-type": "application/json"})
        until(lambda: ("", CHAT, "alice", "499") in counted(to))
        assert http.post(CHAT, json=PROMPT).status_code == 200
