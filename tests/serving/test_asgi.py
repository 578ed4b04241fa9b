"""An ASGI application is called in the same process."""

import asyncio
import json
from contextlib import aclosing

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from profuser.serving import asgi
from profuser.serving.asgi import Head, call

START = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]}
HEAD = Head(200, "text/event-stream")


def body(text: bytes, more: bool = True) -> dict:
    return {"type": "http.response.body", "body": text, "more_body": more}


def answer(app, **headers: str) -> list[Head | bytes]:
    async def collect():
        return [piece async for piece in call(app, "/v1/x", b"{}", headers)]

    return asyncio.run(collect())


def test_a_head_comes_first_and_then_the_body():
    async def echo(request: Request):
        received = {name: request.headers[name] for name in ("content-type", "content-length", "x-request-id")}
        return JSONResponse({"path": request.url.path, "body": await request.json(), **received}, 418)

    head, *pieces = answer(Starlette(routes=[Route("/v1/x", echo, methods=["POST"])]), **{"X-Request-Id": "7"})
    assert head == Head(418, "application/json")
    received = {"content-type": "application/json", "content-length": "2", "x-request-id": "7"}
    assert json.loads(b"".join(pieces)) == {"path": "/v1/x", "body": {}, **received}


def test_ready_pieces_are_joined_and_later_ones_come_separately():
    async def app(scope, receive, send):
        for message in (START, body(b"a"), body(b""), body(b"b")):
            await send(message)
        await asyncio.sleep(0.01)
        await send(body(b"c"))
        await asyncio.sleep(0.01)
        await send(body(b"", more=False))

    assert answer(app) == [HEAD, b"ab", b"c"]


def test_a_piece_arrives_before_the_next_one_is_made():
    async def run():
        asked = asyncio.Event()

        async def app(scope, receive, send):
            await send(START)
            await send(body(b"a"))
            await asked.wait()
            await send(body(b"b", more=False))

        async with aclosing(call(app, "/", b"", {})) as pieces:
            assert [await anext(pieces), await anext(pieces)] == [HEAD, b"a"]
            asked.set()
            assert [piece async for piece in pieces] == [b"b"]

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_response_without_headers_is_json():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    assert answer(app) == [Head(204, "application/json")]


@pytest.mark.parametrize("sent", [[], [START], [START, body(b"a")]])
def test_an_error_of_the_application_is_raised_to_the_caller(sent):
    async def app(scope, receive, send):
        for message in sent:
            await send(message)
        raise KeyError("ours")

    async def run():
        pieces = call(app, "/", b"", {})
        seen = [await anext(pieces) for _ in sent]
        with pytest.raises(KeyError, match="ours"):
            await anext(pieces)
        return seen

    assert asyncio.run(run()) == [HEAD, b"a"][: len(sent)]


def leave(app, pieces: int, grace: float, monkeypatch) -> list[str]:
    """Disconnects after this many pieces, and returns what the application noticed; this may take a second."""
    monkeypatch.setattr(asgi, "GRACE_SECONDS", grace)
    noticed: list[str] = []

    async def run():
        done = asyncio.Event()

        async def watched(scope, receive, send):
            try:
                await app(scope, receive, send, noticed)
            except asyncio.CancelledError:
                noticed.append("cancelled")
                raise
            finally:
                done.set()

        async with aclosing(call(watched, "/", b"{}", {})) as answer:
            for _ in range(pieces):
                await anext(answer)
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(run())
    return noticed


def test_an_application_that_listens_gets_a_disconnect_and_is_not_cancelled(monkeypatch):
    """vLLM's handlers listen for it; cancelled from outside, they would leave the generating task running."""

    async def app(scope, receive, send, noticed):
        async def generate():
            try:
                await asyncio.sleep(60)
            finally:
                noticed.append("engine stopped")

        await send(START)
        assert (await receive())["type"] == "http.request"
        inner, listens = asyncio.create_task(generate()), asyncio.create_task(receive())
        await asyncio.wait([inner, listens], return_when=asyncio.FIRST_COMPLETED)
        noticed.append(listens.result()["type"])
        inner.cancel()
        await asyncio.wait([inner])

    assert leave(app, 1, 60.0, monkeypatch) == ["http.disconnect", "engine stopped"]


def test_a_starlette_stream_ends_when_its_client_disconnects(monkeypatch):
    async def app(scope, receive, send, noticed):
        async def endless():
            try:
                while True:
                    yield b"a"
                    await asyncio.sleep(0.001)
            finally:
                noticed.append("closed")

        await receive()
        await StreamingResponse(endless())(scope, receive, send)

    assert leave(app, 3, 60.0, monkeypatch) == ["closed"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_an_application_that_does_not_listen_is_cancelled(monkeypatch, pieces):
    async def app(scope, receive, send, noticed):
        await send(START)
        await send(body(b"a"))
        await asyncio.sleep(60)

    assert leave(app, pieces, 0.01, monkeypatch) == ["cancelled"]


def test_cancelling_a_waiting_caller_ends_the_application(monkeypatch):
    monkeypatch.setattr(asgi, "GRACE_SECONDS", 0.01)

    async def run():
        began, ended = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        async def wait():
            async with aclosing(call(app, "/", b"", {})) as pieces:
                await anext(pieces)

        waiting = asyncio.create_task(wait())
        await began.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(ended.wait(), 30)

    asyncio.run(run())
