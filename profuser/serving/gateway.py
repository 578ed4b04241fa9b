"""The web application in front of the models: keys, limits, errors in OpenAI's format, metrics, the playground.

It does not depend on Ray: a `Backend` sends requests to models.
"""

import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from profuser.serving.answers import (
    ReleasingStream,
    RequestOutcome,
    api_error,
    begun,
    checked,
    events,
    http_error,
    other_error,
    read_body,
)
from profuser.serving.asgi import Head
from profuser.serving.errors import ApiError, internal, unauthorized, unknown_model
from profuser.serving.gateway_metrics import GatewayMetrics
from profuser.serving.keys import Client, KeyRing
from profuser.serving.needs import STATELESS
from profuser.serving.openapi import openapi_document
from profuser.serving.options import GatewayConfig
from profuser.serving.requests import CHAT, COMPLETIONS, RESPONSES, ApiRequest, check_prompt, read_request

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Client request ids that are passed on to the model and its log."""
log = logging.getLogger("ray.serve")
FILE_ONLY = {"log_to_stderr": False}
"""Makes Ray Serve write a line only to the replica's log, and not to the output that Ray collects from all processes."""


@runtime_checkable
class Backend(Protocol):
    """Sends requests to any replica of a model; if a replica dies before it has begun to answer, the request goes to another.

    Raises:
        ApiError: 429, all replicas are busy; 503, replicas were lost.
    """

    async def whole(self, request: ApiRequest, request_id: str) -> tuple[Head, bytes]:
        """Returns the whole response."""
        ...

    def stream(self, request: ApiRequest, request_id: str) -> AsyncGenerator[Head | bytes, None]:
        """Yields the response piece by piece, the head first."""
        ...

    async def count_tokens(self, request: ApiRequest) -> int:
        """Returns the number of tokens of the longest prompt."""
        ...


class Gateway:
    """The application and its state: keys, requests in flight, metrics."""

    def __init__(self, config: GatewayConfig, backend: Backend, keys: KeyRing | None):
        self.config, self.backend, self.keys = config, backend, keys
        self.names = [*config.models, *config.adapters]
        self.created = int(time.time())
        self.in_flight: Counter[str] = Counter()
        self.metrics = GatewayMetrics()

    def app(self) -> Starlette:
        """Builds the ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.document),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.show_model),
            Route(CHAT, self.complete, methods=["POST"]),
            Route(COMPLETIONS, self.complete, methods=["POST"]),
            Route(RESPONSES, self.complete, methods=["POST"]),
            Route(f"{RESPONSES}/{{rest:path}}", self.stored_response, methods=["GET", "POST", "DELETE"]),
        ]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(self.config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # keys are not cookies: a page can send only a key it was given
            expose_headers=["Retry-After"],
        )
        handlers: dict[Any, Any] = {ApiError: api_error, HTTPException: http_error, Exception: other_error}
        app = Starlette(
            routes=routes, middleware=[cors] if self.config.cors_origins else [], exception_handlers=handlers
        )
        app.router.redirect_slashes = False
        return app

    def client(self, request: Request) -> Client:
        """Identifies the client, and counts refusals.

        Raises:
            ApiError: 401, no valid key; 403, the server requires no key and the client is on another machine.
        """
        try:
            return self._client(request)
        except ApiError as error:
            self.metrics.count("", request.scope["route"].path, "", error.status)
            raise

    def _client(self, request: Request) -> Client:
        if self.keys is None:
            # The `Host` header too (DNS rebinding): a foreign page can make its own name resolve to this machine.
            hosts = {request.client.host if request.client else None, request.url.hostname}
            if not hosts <= LOOPBACK:
                raise ApiError(403, "A server without keys only answers clients on its own machine.", "loopback_only")
            return Client("insecure", self.config.limits)
        client = self.keys.find(request.headers.get("authorization"))
        if client is None:
            raise unauthorized()
        return client

    async def complete(self, request: Request) -> Response:
        """Handles a chat completion, a text completion or a response."""
        client, path = self.client(request), request.scope["route"].path
        async with AsyncExitStack() as stack:
            outcome = await stack.enter_async_context(self._held(path, client))
            body = await read_body(request, client.limits.max_body_bytes)
            asked = read_request(path, body, self.config.models, client.limits, self.config.adapters)
            outcome.model, request_id = asked.model, _request_id(request)
            if client.limits.max_prompt_tokens is not None:
                check_prompt(await self.backend.count_tokens(asked), client.limits)
            if not asked.wants_stream:
                head, answer = await self.backend.whole(asked, request_id)
            else:
                pieces = await stack.enter_async_context(aclosing(self.backend.stream(asked, request_id)))
                head, answer = await begun(pieces)
                if head.status == 200:
                    self.metrics.first_piece(asked.model, time.perf_counter() - outcome.start)
                    return ReleasingStream(events(answer, pieces, outcome), head.content_type, stack.pop_all())
                answer += b"".join([piece async for piece in pieces if isinstance(piece, bytes)])
            if self.config.log_prompts:
                log.info("prompt %s answer %s", asked.body.decode(), answer.decode(errors="replace"))
            response = checked(head, answer, path)
            outcome.status = head.status
            return response

    @asynccontextmanager
    async def _held(self, path: str, client: Client) -> AsyncIterator[RequestOutcome]:
        """Holds one of the key's request slots, from before the body is read; counts and logs the request when it ends."""
        most = client.limits.concurrency
        if self.in_flight[client.name] >= most:
            self.metrics.count("", path, client.name, 429)
            raise ApiError(
                429, f"This key has {most} requests in flight; wait for one to end.", "too_many_requests", retry_after=1
            )
        outcome = RequestOutcome()
        self.in_flight[client.name] += 1
        self.metrics.in_flight(client.name, 1)
        try:
            yield outcome
        except ApiError as error:
            outcome.status = error.status
            raise
        except Exception:
            log.exception("a request failed")
            outcome.status = 500
            raise internal() from None
        finally:
            self.in_flight[client.name] -= 1
            self.metrics.in_flight(client.name, -1)
            seconds = time.perf_counter() - outcome.start
            self.metrics.count(outcome.model, path, client.name, outcome.status, seconds)
            entry = path, outcome.model or "-", client.name, outcome.status, seconds
            log.info("%s %s key=%s %s %.3fs", *entry, extra=FILE_ONLY)

    async def list_models(self, request: Request) -> Response:
        """Lists the models in OpenAI's format."""
        self.client(request)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.names]})

    async def show_model(self, request: Request) -> Response:
        """Describes one model."""
        self.client(request)
        name = request.path_params["name"]
        if name not in self.names:
            raise unknown_model(name, self.names)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        base = self.config.adapters.get(name)
        parent = {"parent": base} if base else {}
        return {"id": name, "object": "model", "created": self.created, "owned_by": "profuser", **parent}

    async def stored_response(self, request: Request) -> Response:
        """Refuses a request for a stored response."""
        self.client(request)
        raise ApiError(404, f"{STATELESS[0].upper()}{STATELESS[1:]}.", "not_found")

    async def health(self, request: Request) -> Response:
        """Reports that the gateway is up; reveals nothing about models or clients, so it needs no key."""
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """Returns the metrics for Prometheus."""
        self.client(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def document(self, request: Request) -> Response:
        """Returns the OpenAPI document."""
        self.client(request)
        return JSONResponse(openapi_document(self.names))

    async def page(self, request: Request) -> Response:
        """Returns the playground. The page contains no server data: it requests everything with the user's key."""
        page = files("profuser.serving").joinpath("playground.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "X-Frame-Options": "DENY"})


def _request_id(request: Request) -> str:
    """Returns the client's request id if it is safe to log, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
