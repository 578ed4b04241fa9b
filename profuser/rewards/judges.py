"""What every reward does, model or verifier, and how one is made from the recipe."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from profuser.models import local_model
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.rewards.verifiers import Verifier


@runtime_checkable
class Judge(Protocol):
    """Scores answers. One lives in each actor."""

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """Rewards of answers, one to each row of the corpus (a row may come more than once); higher is better."""
        ...


def load_judge(config: RewardConfig, path: str | None = None) -> Judge:
    """Makes a reward.

    Args:
        config: what the recipe says of it.
        path: of a reward model, its folder, URI or Hub name.

    Raises:
        EngineError: the reward model cannot be loaded.
        UserError: the verifier's function cannot be imported.
    """
    if not isinstance(config, RewardModelConfig):
        return Verifier(config)
    # Imported here: verifiers need neither torch nor vLLM.
    import torch

    from profuser.rewards import vllm_reward_model
    from profuser.rewards.conversations import Conversations
    from profuser.rewards.transformers_reward_model import TransformersRewardModel

    conversations = Conversations(local_model(path or config.model), config)
    kind = config.engine.kind
    if kind == "auto":
        on_gpu = torch.cuda.is_available()
        kind = "vllm" if on_gpu and vllm_reward_model.knows(conversations.architecture) else "transformers"
        if on_gpu and kind == "transformers":
            print(
                f"rewards.{config.name}: taking Transformers: vLLM does not know {conversations.architecture}",
                flush=True,
            )
    if kind == "vllm":
        return vllm_reward_model.VllmRewardModel(conversations)
    return TransformersRewardModel(conversations)
