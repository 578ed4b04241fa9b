"""The gateway with a listener of its own, on the node where serving was started: no proxy of Ray's stands before it.

A proxy would take some milliseconds of processor time from each request, most of them for the calls by which it hands it over.
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
    """One replica of the gateway; those of one node share its port."""

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
        """Serves by these settings from the next request on; requests at work end by those that they began with."""
        self.app = gateway_app(GatewayConfig.model_validate(config))
        if self.serving is None:
            self.serving = asyncio.create_task(self.server.serve([self.listening]))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def check_health(self) -> None:
        """Raises where it no longer listens, so that Ray Serve replaces the replica."""
        if self.serving and self.serving.done():
            raise RuntimeError("the gateway no longer listens")

    async def __del__(self) -> None:
        """Takes no more, and finishes what it has taken, for as long as Ray Serve waits."""
        self.server.should_exit = True
        if self.serving:
            await self.serving


def build_listening_gateway(config: GatewayConfig, host: str, port: int) -> serve.Application:
    """The gateway's application, listening on the driver's node."""
    gateway: Any = ListeningGateway
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return gateway.options(
        num_replicas=config.num_gateways,
        graceful_shutdown_timeout_s=config.graceful_shutdown_seconds,
        ray_actor_options={"num_cpus": 0, "label_selector": here},
        user_config=config.model_dump(mode="json"),
        # With a version that stays, new settings reach a gateway in place; else Serve would close its port and start another.
        version="1",
        _internal=True,
    ).bind(host, port)
