"""Sends the gateway's responses: streams that release their resources, and errors that reveal no server internals."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from profuser.serving.asgi import Head
from profuser.serving.errors import ApiError, internal, not_implemented

CLIENT_LEFT = 499
"""Status of a request whose client disconnected before it ended."""
log = logging.getLogger("ray.serve")


@dataclass
class RequestOutcome:
    """Outcome of a request, for the log and the metrics."""

    status: int = CLIENT_LEFT
    model: str = ""
    """Name of the model; empty until it is known."""
    start: float = field(default_factory=time.perf_counter)


class ReleasingStream(StreamingResponse):
    """Streaming response that releases its resources when it ends, whatever the reason."""

    def __init__(self, pieces: AsyncIterator[bytes], content_type: str, held: AsyncExitStack):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type=content_type, headers=headers)
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self.held.aclose())


async def begun(pieces: AsyncGenerator[Head | bytes, None]) -> tuple[Head, bytes]:
    """Returns head and first piece. Until both have arrived another replica may take over, and an error sets the status."""
    head, first = await anext(pieces), await anext(pieces, b"")
    if not isinstance(head, Head) or not isinstance(first, bytes):
        raise TypeError(f"an answer begins with {head!r}, {first!r}")
    return head, first


async def events(
    first: bytes, pieces: AsyncGenerator[Head | bytes, None], outcome: RequestOutcome
) -> AsyncIterator[bytes]:
    """Yields the body of a stream. Once it has begun, an error is its last event."""
    try:
        yield first
        async for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
        outcome.status = 200
    except ApiError as error:
        outcome.status = error.status
        yield error.event
    except Exception:
        log.exception("a stream failed")
        outcome.status = 500
        yield internal().event


async def read_body(request: Request, most: int) -> bytes:
    """Reads the body, up to `most` bytes.

    The content type must be JSON: a foreign web page may send other types to this machine without a preflight request.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send JSON, with Content-Type: application/json.", "unsupported_media_type")
    too_large = ApiError(413, f"The body is larger than {most:,} bytes.", "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise ApiError(CLIENT_LEFT, "The body ended early.", "client_left") from None
    return bytes(body)


def checked(head: Head, body: bytes, path: str) -> Response:
    """Returns a model's response; its internal failures are logged and hidden from the client."""
    if head.status == 501:
        raise not_implemented(path)
    if head.status >= 500:
        log.error("a model answered %s: %s", head.status, body[:2000].decode(errors="replace"))
        raise internal()
    return Response(body, head.status, media_type=head.content_type)


async def api_error(_: Request, error: ApiError) -> Response:
    """Responds to an `ApiError`."""
    return JSONResponse(error.body, error.status, error.headers)


async def http_error(_: Request, error: HTTPException) -> Response:
    """Responds to an unknown path or a wrong method."""
    words = {404: "There is no such path.", 405: "Method not allowed."}.get(error.status_code, error.detail)
    body = ApiError(error.status_code, words, "not_found" if error.status_code == 404 else "bad_request").body
    return JSONResponse(body, error.status_code, error.headers)


async def other_error(_: Request, error: Exception) -> Response:
    """Logs an unexpected error and hides it from the client."""
    log.error("a request failed", exc_info=error)
    return JSONResponse(internal().body, 500)
