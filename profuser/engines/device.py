"""Determines an engine's device, dtype and vLLM arguments, identically for sources, reward models and benchmarks."""

import os
from typing import Any

from profuser.recipe.models import EngineConfig


def device() -> str:
    """Returns `cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str) -> Any:
    """Returns a recipe's `dtype` on this machine: `auto` is float32 on a CPU and the checkpoint's type on a GPU."""
    return "float32" if dtype == "auto" and device() == "cpu" else dtype


def context_length(model_config: Any, config: EngineConfig) -> int:
    """Returns a Transformers model's context length: its own limit, under either name in its config, or the recipe's if lower."""
    text = model_config.get_text_config()
    native = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", 2048)
    return min(config.max_model_len or native, native)


def memory_arguments(gpu_memory_utilization: float) -> dict[str, Any]:
    """Returns the memory argument of `vllm.LLM` on a GPU; on a CPU, the one that disables compilation."""
    on_gpu = device() == "cuda"
    return {"gpu_memory_utilization": gpu_memory_utilization} if on_gpu else {"enforce_eager": True}


def vllm_arguments(config: EngineConfig) -> dict[str, Any]:
    """Returns a recipe's engine settings as arguments of `vllm.LLM`.

    Raises:
        TypeError: `options` repeats another setting.
    """
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.kv_cache_gib)))
    return dict(
        dtype=resolve_dtype(config.dtype),
        max_model_len=config.max_model_len,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        max_num_seqs=config.max_num_seqs,
        trust_remote_code=config.trust_remote_code,
        quantization=config.quantization,
        disable_log_stats=True,
        **memory_arguments(config.gpu_memory_utilization),
        **config.options,
    )
