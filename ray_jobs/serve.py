"""Serving: a Hugging Face folder behind the OpenAI API, on Ray Serve.

A replica holds vLLM's own asynchronous engine and vLLM's own OpenAI application: templates, sampling parameters, streaming, usage
and the error format are vLLM's. `ray.serve.llm` is not used: with this pair of versions it loses its model after a first request.
"""

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from ray import serve
from ray.serve.config import HTTPOptions

from profuser.config import Config
from profuser.errors import EngineError, UserError

APP = "profuser"
START_TIMEOUT_SECONDS = 1800.0
REQUEST_TIMEOUT_SECONDS = 300.0


class ServeOptions(Config):
    """What is served, where, and with how much."""

    model: str
    """Hugging Face folder or Hub name."""
    served_model_name: str
    """Name in the API."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, gt=0, lt=65536)
    """Port to listen on."""
    num_replicas: int = Field(default=1, gt=0)
    """Copies of the model."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs a replica reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs a replica reserves."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: the checkpoint's type on a GPU, float32 on a CPU."""
    max_model_len: int | None = None
    """Longest prompt plus answer in tokens; by default what the model allows."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs over which one replica is spread."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine may take."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """On a CPU: memory for the KV cache."""


@serve.deployment
@serve.ingress()
class Model:
    """One replica: an engine and the application in front of it. It is ready when it has answered once."""

    async def __init__(self, options: ServeOptions):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(options.kv_cache_gib)))
        import torch
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
        from vllm.entrypoints.openai.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments: Any = make_arg_parser(FlexibleArgumentParser()).parse_args(
            _flags(options, torch.cuda.is_available())
        )
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments))
        tasks = await self.engine.get_supported_tasks()
        self.app_ = build_app(arguments, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.app_.state, arguments, tasks)
        async for _ in self.engine.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), "first"):
            pass

    def __serve_build_asgi_app__(self) -> Any:
        """The application, for Ray Serve."""
        return self.app_

    async def check_health(self) -> None:
        """Raises where the engine has died, so that Ray Serve replaces the replica."""
        await self.engine.check_health()


def _flags(options: ServeOptions, on_gpu: bool) -> list[str]:
    """The options as flags of `vllm serve`."""
    dtype = "float32" if options.dtype == "auto" and not on_gpu else options.dtype
    flags = ["--model", options.model, "--served-model-name", options.served_model_name, "--dtype", dtype]
    flags += ["--tensor-parallel-size", str(options.tensor_parallel_size), "--disable-log-stats"]
    if options.max_model_len is not None:
        flags += ["--max-model-len", str(options.max_model_len)]
    if on_gpu:
        return [*flags, "--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    return [*flags, "--enforce-eager"]


def build_app(options: ServeOptions) -> serve.Application:
    """The application for `serve.run`."""
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    deployment = Model.options(num_replicas=options.num_replicas, ray_actor_options=resources, max_ongoing_requests=256)
    return deployment.bind(options)


def start_server(options: ServeOptions) -> str:
    """Starts serving on the connected cluster and waits until a real completion over HTTP has succeeded.

    Returns:
        The API's base URL, `http://host:port/v1`.

    Raises:
        UserError: the folder is no model, or the port is taken.
        EngineError: the model does not start; the message names it.
    """
    if not (Path(options.model) / "config.json").is_file() and options.model.count("/") != 1:
        raise UserError(f"serve: {options.model!r} is not a model: no config.json in it")
    _check_port(options.host, options.port)
    serve.start(http_options=HTTPOptions(host=options.host, port=options.port))
    try:
        serve.run(build_app(options), name=APP, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise EngineError(f"serve: {options.model}: did not start: {' '.join(str(error).split())[-300:]}") from error
    host = "127.0.0.1" if options.host == "0.0.0.0" else options.host
    url = f"http://{host}:{options.port}/v1"
    _wait_for_answer(url, options)
    return url


def _wait_for_answer(url: str, options: ServeOptions) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            _post(f"{url}/completions", {"model": options.served_model_name, "prompt": "a", "max_tokens": 1})
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise EngineError(f"serve: {options.model}: no answer at {url}: {error}") from error
            time.sleep(0.5)


def stop_server() -> None:
    """Stops all replicas; on a cluster that lives on, and hosts no other application, Ray Serve as well."""
    serve.delete(APP)
    if "RAY_ADDRESS" in os.environ and not serve.status().applications:
        serve.shutdown()


def ask(base_url: str, model: str, prompt: str, max_tokens: int = 64) -> str:
    """One greedy chat completion over HTTP."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return _post(f"{base_url}/chat/completions", body)["choices"][0]["message"]["content"]


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
        return json.loads(answer.read())


def _check_port(host: str, port: int) -> None:
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
