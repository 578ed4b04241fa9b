"""A gateway in front of scripted models, and functions to call it."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import uvicorn

from profuser.serving.asgi import Head
from profuser.serving.gateway import Gateway
from profuser.serving.keys import KeyRing
from profuser.serving.openapi import openapi_document
from profuser.serving.options import Limits, ServeConfig, ServedModel
from profuser.serving.requests import CHAT, ApiRequest

ALICE, BOB = "sk-of-alice-for-the-tests", "sk-of-bob-for-the-tests"
JSON, EVENTS = Head(200, "application/json"), Head(200, "text/event-stream; charset=utf-8")
PROMPT = {"model": "fused", "messages": [{"role": "user", "content": "the secret prompt"}]}
DONE = b"data: [DONE]\n\n"
ERROR = openapi_document([])["components"]["schemas"]["Error"]


class Fake:
    """Backend that runs its steps for every request: yields a head or bytes, raises an error, or waits for an event."""

    def __init__(self, *steps: Head | bytes | Exception | asyncio.Event, tokens: int | Exception = 1):
        self.steps, self.tokens = steps, tokens
        self.asked: list[tuple[ApiRequest, str]] = []
        self.ended = 0

    async def whole(self, request: ApiRequest, request_id: str) -> tuple[Head, bytes]:
        head, *pieces = [piece async for piece in self.stream(request, request_id)]
        return head, b"".join(pieces)

    async def stream(self, request: ApiRequest, request_id: str) -> AsyncGenerator[Head | bytes, None]:
        self.asked.append((request, request_id))
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.ended += 1

    async def count_tokens(self, request: ApiRequest) -> int:
        if isinstance(self.tokens, Exception):
            raise self.tokens
        return self.tokens


def event(text: str, **choice: Any) -> bytes:
    """Returns one event of a chat answer."""
    fields = {"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}
    content = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "fused", "choices": [fields]}
    return f"data: {json.dumps(content)}\n\n".encode()


def gateway(folder: Path, backend: Fake, **settings: Any) -> Gateway:
    """Returns a gateway for alice and bob; with `insecure`, for every client on this machine."""
    file = folder / "keys.yaml"
    file.write_text(f"- {{name: alice, key: {ALICE}}}\n- {{name: bob, key: {BOB}}}\n")
    models = (ServedModel(name="fused", model="-"), ServedModel(name="org/source", model="-"))
    config = ServeConfig(models=models, **settings)
    return Gateway(config.gateway, backend, None if config.insecure else KeyRing(file, config.limits))


def limits(folder: Path, backend: Fake, **values: int) -> Gateway:
    """Returns a gateway whose keys have these limits."""
    return gateway(folder, backend, limits=Limits(**values))


def headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def asend(to: Gateway, path: str = CHAT, key: str | None = ALICE, **options: Any) -> httpx.Response:
    """Sends a request, a POST if it has a body. The application's exceptions are raised here."""
    client = options.pop("client", ("127.0.0.1", 1))
    base = options.pop("base", "http://127.0.0.1:8000")
    method = options.pop("method", "POST" if {"json", "content"} & set(options) else "GET")
    options["headers"] = headers(key) | options.get("headers", {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(to.app(), client=client), base_url=base) as http:
        return await http.request(method, path, **options)


def send(to: Gateway, path: str = CHAT, key: str | None = ALICE, **options: Any) -> httpx.Response:
    """Calls `asend` from outside an event loop."""
    return asyncio.run(asend(to, path, key, **options))


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Checks that a response is an error in OpenAI's format with this status, and returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    jsonschema.validate(response.json(), ERROR)
    return response.json()["error"]


def counted(to: Gateway, name: str = "profuser_requests_total") -> dict[tuple[str, ...], float]:
    """Returns a metric's values by its label values."""
    found = [sample for metric in to.metrics.registry.collect() for sample in metric.samples if sample.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in found}


@contextmanager
def logged() -> Iterator[list[str]]:
    """Captures the gateway's log, tracebacks included."""
    lines: list[str] = []
    log, handler = logging.getLogger("ray.serve"), logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def listening(to: Gateway) -> Iterator[str]:
    """Serves a gateway on a real socket; yields its address."""
    server = uvicorn.Server(uvicorn.Config(to.app(), log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as place:
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def until(condition: Any) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
