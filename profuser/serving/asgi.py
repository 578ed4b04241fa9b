"""Calls an ASGI application in the same process and yields its response piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

GRACE_SECONDS = 5.0
"""Time that an application has to stop after its client disconnected, before it is cancelled."""


@dataclass(frozen=True)
class Head:
    """Status and content type of a response."""

    status: int
    content_type: str

    def encode(self) -> bytes:
        """Encodes it as one line, for another process."""
        return f"{self.status} {self.content_type}".encode()

    @classmethod
    def decode(cls, line: bytes) -> "Head":
        """Decodes the output of `encode`."""
        status, _, content_type = line.decode().partition(" ")
        return cls(int(status), content_type)


async def call(app: Any, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[Head | bytes]:
    """POSTs a JSON body. Closing the iterator sends the application a disconnect, and later cancels it.

    The disconnect comes first because a cancellation would not stop tasks that the application has started, as vLLM does.

    Yields:
        The head, then the body in pieces: everything that is ready when a piece is requested comes as one.
    """
    messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    disconnected = asyncio.Event()
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (part := next(parts, None)) is not None:
            return part
        await disconnected.wait()
        return {"type": "http.disconnect"}

    task = asyncio.ensure_future(app(_scope(path, body, headers), receive, messages.put))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        async for piece in _pieces(messages):
            yield piece
        await task  # raises the application's error
    finally:
        disconnected.set()
        if not task.done():
            asyncio.get_running_loop().call_later(GRACE_SECONDS, task.cancel)


async def _pieces(messages: asyncio.Queue[dict[str, Any] | None]) -> AsyncIterator[Head | bytes]:
    more = True
    while more:
        ready = [await messages.get()]
        while not messages.empty():
            ready.append(messages.get_nowait())
        body = b""
        for message in ready:
            if message is None:
                more = False
            elif message["type"] == "http.response.start":
                known = {name.lower(): value for name, value in message.get("headers", ())}
                yield Head(message["status"], known.get(b"content-type", b"application/json").decode())
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
        if body:
            yield body


def _scope(path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
