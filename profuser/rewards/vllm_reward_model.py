"""A reward model in vLLM's pooling runner: continuous batching of conversations of any length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import profuser.engines.vllm  # noqa: F401  Sets environment variables that vLLM reads when it is first imported.
from profuser.engines.device import memory_arguments, resolve_dtype
from profuser.rewards.conversations import Conversations

CPU_CACHE_GIB = 1.0
"""KV cache in GiB that vLLM allocates on a CPU. A single pass hardly needs it; vLLM's own default is far more."""

CALL_BATCHES = 8
"""Batches of one call: few enough to show progress between calls, enough that draining the last one hardly matters."""


def knows(architecture: str) -> bool:
    """Returns whether the installed vLLM has this sequence classifier, or converts it from the same family's causal model."""
    try:
        from vllm.model_executor.models import ModelRegistry
    except ImportError:
        return False
    family = architecture.removesuffix("ForSequenceClassification")
    return not {architecture, f"{family}ForCausalLM"}.isdisjoint(ModelRegistry.get_supported_archs())


class VllmRewardModel:
    """A `vllm.LLM` in this process that classifies."""

    def __init__(self, conversations: Conversations):
        from vllm import LLM

        config = conversations.config
        try:
            self.llm = LLM(
                conversations.path,
                runner="pooling",
                convert="classify" if conversations.architecture.endswith("ForSequenceClassification") else "auto",
                dtype=resolve_dtype(config.dtype, conversations.path, config.revision),
                max_model_len=conversations.max_tokens,
                max_num_seqs=config.batch_size,
                tensor_parallel_size=config.engine.tensor_parallel_size,
                disable_log_stats=True,
                **conversations.options,
                **memory_arguments(config.engine.gpu_memory_utilization, CPU_CACHE_GIB),
            )
        except (RuntimeError, ValueError, OSError, AssertionError, NotImplementedError) as error:
            raise conversations.failure(
                "could not be loaded by vLLM", error, "; try engine.kind: transformers"
            ) from error
        self.conversations = conversations
        self.answered: Callable[[int], None] = lambda number: None

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`; raw logits."""
        from vllm import PoolingParams, TokensPrompt

        conversations = self.conversations.encode(rows, answers)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in conversations if ids]
        # By default vLLM returns the sigmoid, which is about 1 for all good answers.
        raw = PoolingParams(use_activation=False)
        step = CALL_BATCHES * self.conversations.config.batch_size
        found: list[float] = []
        for start in range(0, len(prompts), step):
            outputs = self.llm.classify(prompts[start : start + step], pooling_params=raw, use_tqdm=False)
            found += [output.outputs.probs[0] for output in outputs]
            self.answered(len(outputs))
        scores = np.full(len(conversations), np.nan)
        scores[[bool(ids) for ids in conversations]] = found
        return scores
