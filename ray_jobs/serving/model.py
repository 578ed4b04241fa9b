"""Defines a replica of a served model: vLLM's asynchronous engine and vLLM's OpenAI application, in one process.

vLLM handles templates, sampling parameters, streaming, usage and request checks; special tokens spelled in messages are read as
text. `ray.serve.llm` is not used: with this pair of versions it loses its model after a first request.
"""

import hashlib
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from profuser.engines.device import resolve_dtype
from profuser.models.reference import local_model
from profuser.serving.adapters import Adapter, adapter_flags
from profuser.serving.asgi import Head, call
from profuser.serving.errors import ApiError
from profuser.serving.needs import MEDIA, Abilities, check_needs, own_words, template_variables
from profuser.serving.options import NONE, ServedModel
from profuser.serving.parsers import HARMONY
from profuser.serving.requests import escape_special_tokens
from profuser.serving.resolve import read_adapters, resolve_model
from profuser.serving.responses import as_chat

APP = "profuser"
"""Name of the gateway's application; also the prefix of the models' application names."""
TOKENIZE = "/tokenize"
"""Path of vLLM's application that counts a prompt's tokens."""
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

        options, adapters = resolve_model(options)[0], read_adapters(options)
        path = local_model(options.model)
        dtype = resolve_dtype(options.dtype, path, options.revision)
        flags = vllm_flags(options, path, dtype, torch.cuda.is_available(), adapters)
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
        self.prepare = dict if (is_mistral := is_mistral_tokenizer(tokenizer)) else escape_special_tokens
        tasks = await self.engine.get_supported_tasks()
        self.app = build_app(arguments, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.app.state, arguments, tasks)
        self.paths = {getattr(route, "path", "") for route in self.app.routes}
        self.able = abilities(options, self.engine.vllm_config, None if is_mistral else tokenizer)
        async for _ in self.engine.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), "first"):
            pass

    async def whole(self, path: str, body: bytes, request_id: str) -> bytes:
        """Returns the answer of vLLM's application to a POST of a JSON body: a line with the head, then the body."""
        head, *parts = [piece async for piece in self.stream(path, body, request_id)]
        return b"".join([head, b"\n", *parts])

    async def stream(self, path: str, body: bytes, request_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the same answer in pieces. A client that disconnects frees its slot in the engine."""
        try:
            body = self._prepared(path, json.loads(body))
        except ApiError as error:
            yield Head(error.status, "application/json").encode()
            yield json.dumps(error.body).encode()
            return
        status = 200
        async for piece in call(self.app, path, body, {"x-request-id": request_id}):
            if self.engine.errored:
                os._exit(ENGINE_DEAD)
            if isinstance(piece, Head):
                status = piece.status
                yield piece.encode()
            else:
                yield own_words(piece) if status == 400 else piece

    def _prepared(self, path: str, fields: dict[str, Any]) -> bytes:
        """Returns the body for vLLM's application; raises ApiError for what this replica is not configured for."""
        if path not in self.paths:
            raise ApiError(501, "", "not_implemented")  # the gateway has the words
        if path != TOKENIZE:
            check_needs(path, fields, self.able)
        elif "input" in fields:
            try:
                fields = as_chat(fields)
            except (ValueError, TypeError, LookupError):
                raise ApiError(400, "The input cannot be read.", "invalid_prompt", "input") from None
        return json.dumps(self.prepare(fields), default=dict).encode()

    async def check_health(self) -> None:
        """Raises if the engine has died, so that Ray Serve replaces the replica."""
        await self.engine.check_health()


def abilities(options: ServedModel, config: Any, tokenizer: Any) -> Abilities:
    """Returns what a replica is configured for.

    Args:
        options: its settings, the parsers' names resolved.
        config: vLLM's configuration.
        tokenizer: the model's; None for Mistral's own.
    """
    model, text = config.model_config, options.chat_template
    if text is None and getattr(tokenizer, "chat_template", None):
        text = tokenizer.get_chat_template()
    is_rendered = tokenizer is not None and model.hf_config.model_type != HARMONY
    return Abilities(
        reasoning_parser=options.reasoning_parser,
        tool_parser=options.tool_parser,
        variables=template_variables(text) if text and is_rendered else None,
        has_template=bool(text) or not is_rendered,
        media=frozenset(MEDIA if model.is_multimodal_model else ()),
        max_logprobs=model.max_logprobs,
        has_priorities=config.scheduler_config.policy == "priority",
    )


def vllm_flags(
    options: ServedModel, path: str, dtype: str, on_gpu: bool, adapters: list[Adapter] | None = None
) -> list[str]:
    """Returns the options, all but `options` itself, as flags of `vllm serve`; `auto` parsers are resolved before."""
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
    if options.template_arguments:
        flags += ["--default-chat-template-kwargs", json.dumps(options.template_arguments)]
    if options.reasoning_parser != NONE:
        flags += ["--reasoning-parser", options.reasoning_parser]
    if options.tool_parser != NONE:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_parser]
    flags += adapter_flags(adapters or (), on_gpu)
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
    engine = [
        *vllm_flags(options, options.model, options.dtype, on_gpu=True),
        options.kv_cache_gib,
        options.options,
        options.adapters,
    ]
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
