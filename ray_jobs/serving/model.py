"""Defines a replica of a served model: vLLM's asynchronous engine and vLLM's OpenAI application, in one process.

vLLM handles templates, sampling parameters, streaming, usage and request checks; special tokens spelled in messages are read as
text. `ray.serve.llm` is not used: with this pair of versions it loses its model after a first request.
"""

import hashlib
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from profuser.engines.device import resolve_dtype
from profuser.models.reference import local_model
from profuser.serving.asgi import Head, call
from profuser.serving.options import ServedModel
from profuser.serving.requests import escape_special_tokens

APP = "profuser"
"""Name of the gateway's application; also the prefix of the models' application names."""
ENGINE_DEAD = 70
"""Exit code of a replica whose engine died: its requests move to another, and Ray Serve starts a new one."""


@serve.deployment
class Model:
    """One replica; it is ready once it has answered a request."""

    async def __init__(self, options: ServedModel):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # By default vLLM binds every engine of a machine to the same cores; Ray sets how many threads each may use.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # If this variable is set, vLLM takes its whole number of GiB instead of the flag.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        import torch
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
        from vllm.entrypoints.openai.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.utils.mistral import is_mistral_tokenizer
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        path = local_model(options.model)
        dtype = resolve_dtype(options.dtype, path, options.revision)
        flags = vllm_flags(options, path, dtype, torch.cuda.is_available())
        arguments: Any = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
        for name, value in options.options.items():
            if not hasattr(arguments, name):
                raise ValueError(f"{options.name}: options: vLLM has no argument {name!r}")
            setattr(arguments, name, value)
        # Ray's agent on every node exports the engine's queue, cache and speed to Prometheus.
        loggers: Any = [RayPrometheusStatLogger]
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments), stat_loggers=loggers)
        tokenizer = self.engine.renderer.get_tokenizer()
        # Mistral's own tokenizers read special tokens as text, and accept no template arguments.
        self.prepare = bytes if is_mistral_tokenizer(tokenizer) else escape_special_tokens
        tasks = await self.engine.get_supported_tasks()
        self.app = build_app(arguments, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.app.state, arguments, tasks)
        async for _ in self.engine.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), "first"):
            pass

    async def whole(self, path: str, body: bytes, request_id: str) -> bytes:
        """Returns the answer of vLLM's application to a POST of a JSON body: a line with the head, then the body."""
        head, *parts = [piece async for piece in self.stream(path, body, request_id)]
        return b"".join([head, b"\n", *parts])

    async def stream(self, path: str, body: bytes, request_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the same answer in pieces. A client that disconnects frees its slot in the engine."""
        async for piece in call(self.app, path, self.prepare(body), {"x-request-id": request_id}):
            if self.engine.errored:
                os._exit(ENGINE_DEAD)
            yield piece.encode() if isinstance(piece, Head) else piece

    async def check_health(self) -> None:
        """Raises if the engine has died, so that Ray Serve replaces the replica."""
        await self.engine.check_health()


def vllm_flags(options: ServedModel, path: str, dtype: str, on_gpu: bool) -> list[str]:
    """Returns the options, all but `options` itself, as flags of `vllm serve`."""
    flags = ["--model", path, "--served-model-name", options.name, "--dtype", dtype]
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "revision",
        "quantization",
        "max_model_len",
        "max_num_seqs",
        "chat_template",
    ):
        if (value := getattr(options, name)) is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    flags += ["--trust-remote-code"] if options.trust_remote_code else []
    if on_gpu:
        return [*flags, "--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    return [*flags, "--enforce-eager", "--kv-cache-memory-bytes", str(int(options.kv_cache_gib * 2**30))]


def app_name(model: str) -> str:
    """Returns the name of a model's Serve application: each model has its own, so that models are added and changed one by one.

    (Ray Serve 2.59 does not survive the removal of an autoscaling deployment from a shared application.)
    """
    return f"{APP}-{model.replace('/', '-')}"


def build_model(options: ServedModel) -> serve.Application:
    """Returns a model's application."""
    replicas: dict[str, Any] = {"num_replicas": options.num_replicas}
    if options.num_replicas is None:
        replicas = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": options.target_ongoing_requests,
            }
        }
    engine = [*vllm_flags(options, options.model, options.dtype, on_gpu=True), options.kv_cache_gib, options.options]
    return Model.options(
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        logging_config={"enable_access_log": False},  # the gateway has one
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        graceful_shutdown_timeout_s=options.graceful_shutdown_seconds,
        # Replicas are kept while their engine's settings are unchanged; by default Serve replaces them on every `serve.run`.
        version=hashlib.sha256(repr(engine).encode()).hexdigest(),
        _internal=True,
        **replicas,
    ).bind(options)
