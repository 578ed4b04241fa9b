"""Determines an engine's device, dtype and vLLM arguments, identically for sources, reward models and benchmarks."""

import os
from typing import Any

from profuser.engines.processor import bfloat16_flag, cpu_dtype
from profuser.models.checkpoint import Checkpoint
from profuser.recipe.engine import EngineConfig


def device() -> str:
    """Returns `cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str, path: str, revision: str | None = None) -> Any:
    """Returns a recipe's `dtype` on this machine: `auto` is the checkpoint's type on a GPU, and `cpu_dtype` on a CPU."""
    if dtype != "auto" or device() == "cuda":
        return dtype
    return cpu_dtype(Checkpoint.of(path, revision), bfloat16_flag())


def context_length(model_config: Any, config: EngineConfig) -> int:
    """Returns a Transformers model's context length: its own limit, under either name in its config, or the recipe's if lower."""
    text = model_config.get_text_config()
    native = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", 2048)
    return min(config.max_model_len or native, native)


def memory_arguments(gpu_memory_utilization: float, kv_cache_gib: float) -> dict[str, Any]:
    """Returns the memory argument of `vllm.LLM` on a GPU; on a CPU, the size of its KV cache, without compilation."""
    if device() == "cuda":
        return {"gpu_memory_utilization": gpu_memory_utilization}
    # If this variable is set, vLLM takes its whole number of GiB instead of the argument.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return {"enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}


def vllm_arguments(config: EngineConfig, path: str, revision: str | None) -> dict[str, Any]:
    """Returns a recipe's engine settings as arguments of `vllm.LLM`, for a model of this path and revision.

    Raises:
        TypeError: `options` repeats another setting.
    """
    return dict(
        dtype=resolve_dtype(config.dtype, path, revision),
        max_model_len=config.max_model_len,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        max_num_seqs=config.max_num_seqs,
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
        disable_log_stats=True,
        **memory_arguments(config.gpu_memory_utilization, config.kv_cache_gib),
        **config.options,
    )
