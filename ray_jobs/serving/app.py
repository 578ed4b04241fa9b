"""Serves models of finished runs behind an OpenAI-compatible API, on Ray Serve.

One application is the gateway (keys, limits, the playground). Each model is another one, whose replicas hold vLLM's engine.
A Serve config file imports `build_gateway` and `build_model` too: for `serve deploy` and KubeRay's RayService.
"""

import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ray import serve

from profuser.config import Config
from profuser.errors import EngineError, UserError
from profuser.serving.gateway import LOOPBACK
from profuser.serving.keys import KeyRing
from profuser.serving.locate import check_model
from profuser.serving.options import ServeConfig
from ray_jobs.serving.gateway import build_gateway
from ray_jobs.serving.listener import build_listening_gateway
from ray_jobs.serving.model import APP, app_name, build_model

REQUEST_TIMEOUT_SECONDS = 300.0
"""Timeout of `ask`."""


def serve_file(config: ServeConfig, host: str, port: int) -> str:
    """Returns a Serve config file with all applications, for `serve deploy` and KubeRay's `serveConfigV2`."""
    applications = [_application(app_name(model.name), None, build_model, model) for model in config.models]
    applications.append(_application(APP, "/", build_gateway, config.gateway))
    options = {"host": host, "port": port}
    tree = {"proxy_location": "EveryNode", "http_options": options, "applications": applications}
    return yaml.safe_dump(tree, sort_keys=False)


def _application(name: str, route: str | None, build: Callable[..., Any], config: Config) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude_defaults=True)
    path = f"{__name__}:{build.__name__}"
    return {"name": name, "route_prefix": route, "import_path": path, "args": settings}


def check_serving(config: ServeConfig, host: str) -> None:
    """Raises UserError where a folder is not a model, there is no key, or a server without keys could be reached from elsewhere."""
    for model in config.models:
        check_model(model.model)
    if config.insecure and host not in LOOPBACK:
        raise UserError(f"serve: --insecure requires no key, so it listens on 127.0.0.1 only, not on {host}")
    if not config.insecure:
        KeyRing(Path(config.keys_file).expanduser() if config.keys_file else None, config.limits)


def start_server(config: ServeConfig, host: str, port: int) -> str:
    """Starts serving on the connected cluster and returns once every model has answered; the gateway listens on this machine.

    Returns:
        The API's base URL, `http://host:port/v1`.

    Raises:
        UserError: see `check_serving`; or the port is in use.
        EngineError: a model does not start; the message names it.
    """
    check_serving(config, host)
    _check_port(host, port)
    serve.start(proxy_location="Disabled")
    try:
        deploy(config, host, port)
    except RuntimeError as error:
        names = ", ".join(model.model for model in config.models)
        raise EngineError(f"serve: {names}: did not start: {_why(error)}") from error
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/v1"


def deploy(config: ServeConfig, host: str, port: int) -> None:
    """Starts or updates the served models and waits for them; models that are no longer in the config are deleted.

    Replicas whose model and engine settings are unchanged are kept.

    Raises:
        RuntimeError: an application does not start.
    """
    targets = [serve.RunTarget(build_model(model), app_name(model.name), None) for model in config.models]
    serve.run_many([*targets, serve.RunTarget(build_listening_gateway(config.gateway, host, port), APP, None)])
    for name in _our_applications() - {APP, *(target.name for target in targets)}:
        serve.delete(name)


def _our_applications() -> set[str]:
    """Returns the names of the gateway's and the models' applications on this cluster."""
    return {name for name in serve.status().applications if name == APP or name.startswith(f"{APP}-")}


def _why(error: RuntimeError) -> str:
    """Returns the last line of the first failed deployment's message."""
    for name in sorted(_our_applications()):
        for deployment in serve.status().applications[name].deployments.values():
            if lines := [line.strip() for line in deployment.message.splitlines() if line.strip()]:
                return lines[-1][:300]
    return " ".join(str(error).split())[-300:]


def stop_server() -> None:
    """Stops the gateway, which finishes its open requests, then the models; on a permanent cluster that hosts no other
    application, also Ray Serve."""
    for name in sorted(_our_applications()):
        serve.delete(name)
    if "RAY_ADDRESS" in os.environ and not serve.status().applications:
        serve.shutdown()


def ask(base_url: str, model: str, prompt: str, max_tokens: int = 64) -> str:
    """Returns a greedy chat completion over HTTP, from a server that requires no key."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
        return json.loads(answer.read())["choices"][0]["message"]["content"]


def _check_port(host: str, port: int) -> None:
    """Raises UserError where the port is in use or not permitted."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"serve: cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None


def wait_until_interrupted() -> None:
    """Blocks until Ctrl-C or SIGTERM, then stops serving."""
    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    stopped.wait()
    stop_server()
