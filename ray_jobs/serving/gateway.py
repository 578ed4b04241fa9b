"""Runs the gateway as a Ray Serve deployment: it routes requests to their model's replicas, and to another when a replica dies."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from profuser.serving.asgi import Head
from profuser.serving.errors import ApiError, internal, interrupted, overloaded
from profuser.serving.gateway import Gateway
from profuser.serving.keys import KeyRing
from profuser.serving.options import GatewayConfig
from profuser.serving.replay import Replay
from profuser.serving.requests import ApiRequest
from ray_jobs.serving.model import TOKENIZE, app_name

MAX_ONGOING = 10_000
"""Concurrent requests at one gateway replica; keys and models have their own limits."""
EVENTS = "text/event-stream"
"""Content type of a streamed answer."""


class Replicas:
    """Sends requests to the models' replicas through Serve's handles; see `profuser.serving.gateway.Backend`."""

    def __init__(self, max_attempts: int):
        self.max_attempts = max_attempts
        self.handles: dict[str, DeploymentHandle] = {}

    def _handle(self, model: str) -> DeploymentHandle:
        """Returns the handle of the model's application, which may have started after this gateway.

        Raises:
            ApiError: 503, the application does not exist.
        """
        if model not in self.handles:
            try:
                # A model answers in bytes: gRPC transmits them without serialization.
                self.handles[model] = serve.get_app_handle(app_name(model)).options(response_serialization="noop")
            except RayServeException:
                raise ApiError(503, f"The model {model!r} is not available yet.", "not_ready", retry_after=10) from None
        return self.handles[model]

    async def whole(self, request: ApiRequest, request_id: str) -> tuple[Head, bytes]:
        """See `Backend.whole`."""
        return await self._whole(request.served, request.path, request.body, request_id)

    async def stream(self, request: ApiRequest, request_id: str) -> AsyncGenerator[Head | bytes, None]:
        """See `Backend.stream`. A repeatable request continues where its stream broke off."""
        replay = Replay(request.repeatable)
        sent: Head | None = None
        for _ in range(self.max_attempts):
            replay.restart()
            try:
                async with aclosing(self._pieces(request, request_id)) as pieces:
                    head = Head.decode(await anext(pieces))
                    if sent and head.status != sent.status:
                        raise interrupted()
                    async for piece in pieces:
                        new = replay.forward(piece) if head.content_type.startswith(EVENTS) else piece
                        if new and sent is None:
                            yield (sent := head)
                        if new:
                            yield new
                if sent is None:
                    yield head
                return
            except RayActorError:
                continue
        raise interrupted()

    async def count_tokens(self, request: ApiRequest) -> int:
        """See `Backend.count_tokens`."""
        return max([await self._count(request.served, question) for question in request.questions], default=0)

    async def _count(self, model: str, question: dict[str, Any] | int) -> int:
        if isinstance(question, int):
            return question
        head, answer = await self._whole(model, TOKENIZE, json.dumps(question).encode(), "tokenize")
        if head.status >= 500:
            raise internal()
        if head.status != 200:
            raise ApiError(400, "The prompt cannot be tokenized.", "invalid_prompt", "messages")
        return json.loads(answer)["count"]

    async def _whole(self, model: str, path: str, body: bytes, request_id: str) -> tuple[Head, bytes]:
        for _ in range(self.max_attempts):
            try:
                answer: bytes = await self._handle(model).whole.remote(path, body, request_id)
                head, _, content = answer.partition(b"\n")
                return Head.decode(head), content
            except BackPressureError:
                raise overloaded(model) from None
            except RayActorError:
                continue
        raise interrupted()

    async def _pieces(self, request: ApiRequest, request_id: str) -> AsyncGenerator[bytes, None]:
        handle: Any = self._handle(request.served).options(stream=True)
        pieces = handle.stream.remote(request.path, request.body, request_id)
        try:
            async for piece in pieces:
                yield piece
        except BackPressureError:
            raise overloaded(request.model) from None
        except (GeneratorExit, asyncio.CancelledError):
            # The client disconnected. A request that was refused in the meantime raises its refusal again.
            with suppress(RayServeException):
                pieces.cancel()
            raise


def gateway_app(config: GatewayConfig) -> Starlette:
    """Returns the gateway's ASGI application."""
    file = Path(config.keys_file).expanduser() if config.keys_file else None
    keys = None if config.insecure else KeyRing(file, config.limits)
    return Gateway(config, Replicas(config.max_attempts), keys).app()


@serve.deployment(name="Gateway", max_ongoing_requests=MAX_ONGOING)
@serve.ingress()
class ServeGateway:
    """One replica of the gateway, behind Ray Serve's proxies."""

    def __init__(self, config: GatewayConfig):
        self.asgi = gateway_app(config)

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the application, for Ray Serve."""
        return self.asgi


def build_gateway(config: GatewayConfig) -> serve.Application:
    """Returns the gateway's application, behind Ray Serve's proxies."""
    gateway: Any = ServeGateway
    seconds = config.graceful_shutdown_seconds
    return gateway.options(
        num_replicas=config.num_gateways,
        graceful_shutdown_timeout_s=seconds,
        logging_config={"enable_access_log": False},  # the gateway has its own
    ).bind(config)
