"""Loads a reward model in the engine that the recipe names."""

import torch

from profuser.models.reference import local_model
from profuser.recipe.rewards import RewardModelConfig
from profuser.rewards import vllm_reward_model
from profuser.rewards.conversations import Conversations
from profuser.rewards.judges import Judge
from profuser.rewards.transformers_reward_model import TransformersRewardModel


def load_reward_model(config: RewardModelConfig, path: str) -> Judge:
    """Loads a reward model (a folder, URI or Hub name). `auto` selects vLLM on a GPU if it supports the architecture.

    Raises:
        EngineError: the model cannot be loaded.
    """
    conversations = Conversations(local_model(path, config.revision), config)
    kind = config.engine.kind
    if kind == "auto":
        on_gpu = torch.cuda.is_available()
        kind = "vllm" if on_gpu and vllm_reward_model.knows(conversations.architecture) else "transformers"
        if on_gpu and kind == "transformers":
            reason = f"vLLM does not support {conversations.architecture}"
            print(f"rewards.{config.name}: using Transformers: {reason}", flush=True)
    if kind == "vllm":
        return vllm_reward_model.VllmRewardModel(conversations)
    return TransformersRewardModel(conversations)
