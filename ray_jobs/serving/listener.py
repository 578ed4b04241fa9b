"""Runs the gateway with its own listener, on the node where serving was started, without Ray Serve's proxy.

A proxy would cost some milliseconds of CPU time per request, mostly for the calls by which it forwards the request.
"""

import asyncio
import socket
from typing import Any

import ray
import uvicorn
from ray import serve

from profuser.serving.options import GatewayConfig
from ray_jobs.serving.gateway import gateway_app

KEEP_ALIVE_SECONDS = 90


@serve.deployment(name="Gateway")
class ListeningGateway:
    """One replica of the gateway; replicas on one node share the port."""

    def __init__(self, host: str, port: int):
        self.listening = socket.create_server((host, port), backlog=2048, reuse_port=True)
        options = uvicorn.Config(
            self._answer,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self.server = uvicorn.Server(options)
        self.serving: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Applies new settings from the next request on; running requests keep the settings that they started with."""
        self.app = gateway_app(GatewayConfig.model_validate(config))
        if self.serving is None:
            self.serving = asyncio.create_task(self.server.serve([self.listening]))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def check_health(self) -> None:
        """Raises if the server no longer listens, so that Ray Serve replaces the replica."""
        if self.serving and self.serving.done():
            raise RuntimeError("the gateway no longer listens")

    async def __del__(self) -> None:
        """Accepts no more requests, and finishes the open ones for as long as Ray Serve waits."""
        self.server.should_exit = True
        if self.serving:
            await self.serving


def build_listening_gateway(config: GatewayConfig, host: str, port: int) -> serve.Application:
    """Returns the gateway's application, listening on the driver's node."""
    gateway: Any = ListeningGateway
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return gateway.options(
        num_replicas=config.num_gateways,
        graceful_shutdown_timeout_s=config.graceful_shutdown_seconds,
        ray_actor_options={"num_cpus": 0, "label_selector": here},
        user_config=config.model_dump(mode="json"),
        # With a constant version, Serve applies new settings in place; else it would close the port and start another replica.
        version="1",
        _internal=True,
    ).bind(host, port)
