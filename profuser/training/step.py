"""One forward pass of the fusion: a micro-batch as tensors, and the module that turns it into the loss.

Legend: B examples, S tokens of the longest, N response tokens of the micro-batch, K top-k.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from profuser.recipe.fusing import FuseConfig
from profuser.schedule import ModeWeights
from profuser.schemas import MODES
from profuser.training.examples import Example
from profuser.training.losses import Tail, TokenLosses, fusion_loss
from profuser.training.output_head import OutputHead


class MicroBatch(NamedTuple):
    """Padded examples and what is to be learnt at each response token."""

    input_ids: Int[Tensor, "B S"]
    attention_mask: Int[Tensor, "B S"]
    positions: Int[Tensor, "N"]
    """Places in the flattened `[B * S]` whose hidden states predict the targets: one before each response token."""
    targets: Int[Tensor, "N"]
    topk_ids: Int[Tensor, "N K"]
    topk_logprobs: Float[Tensor, "N K"]
    ce_weight: Float[Tensor, "N"]
    kl_weight: Float[Tensor, "N"]
    mode: Int[Tensor, "N"]
    """Index into `MODES` of each token's example."""


def collate(
    examples: Sequence[Example],
    weights: ModeWeights,
    num_tokens: dict[str, int],
    beta: float,
    pad_id: int,
    top_k: int,
) -> MicroBatch:
    """Pads examples on the right and lays out their response tokens one after another.

    Args:
        examples: of one micro-batch; with none, a batch without any response token is made, so that a worker that has
            nothing to learn still takes part in the collectives of sharded parameters.
        weights: of both modes at this update.
        num_tokens: response tokens per mode in the whole update, over all workers: the denominators.
        beta: weight of the KL against the cross-entropy.
        pad_id: any valid token id.
        top_k: width of the top-k.
    """
    width = max((example.num_tokens for example in examples), default=1)
    input_ids = np.full((max(1, len(examples)), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    mask[:, 0] = 1
    positions: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    scale: list[np.ndarray] = [np.zeros(0, dtype=np.float32)]
    for row, example in enumerate(examples):
        length, first = example.num_tokens, len(example.prompt_ids)
        input_ids[row, :length] = np.concatenate([example.prompt_ids, example.response_ids])
        mask[row, :length] = 1
        positions.append(row * width + np.arange(first - 1, length - 1))
        share = getattr(weights, example.mode) / num_tokens[example.mode]
        scale.append(np.full(length - first, share, dtype=np.float32))
    ce_weight = torch.from_numpy(np.concatenate(scale))
    modes = [np.full(len(e.response_ids), MODES.index(e.mode)) for e in examples]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        positions=torch.from_numpy(np.concatenate(positions)),
        targets=_stack([e.response_ids for e in examples], (0,), torch.int64),
        topk_ids=_stack([e.topk.ids for e in examples], (0, top_k), torch.int64),
        topk_logprobs=_stack([e.topk.logprobs for e in examples], (0, top_k), torch.float32),
        ce_weight=ce_weight,
        kl_weight=ce_weight * beta,
        mode=_stack(modes, (0,), torch.int64),
    )


def _stack(parts: Sequence[np.ndarray], empty: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    whole = np.concatenate(parts) if parts else np.zeros(empty)
    return torch.from_numpy(whole).to(dtype)


class FusionModule(nn.Module):
    """The target with the fusion loss as its forward pass.

    The loss is inside, so that sharded parameters (the output weight among them) are whole while it reads them.
    """

    def __init__(self, model: Any, config: FuseConfig):
        super().__init__()
        self.model = model
        self.temperature, self.chunk_tokens = config.temperature, config.loss_chunk_tokens
        self.tail: Tail = config.tail

    def forward(self, batch: MicroBatch) -> TokenLosses:
        """Weighted loss of a micro-batch, with CE and KL per response token in nats."""
        output = self.model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, return_dict=True
        )
        hidden = output.last_hidden_state.flatten(0, 1)[batch.positions]
        return fusion_loss(
            hidden,
            OutputHead.of(self.model),
            batch.targets,
            batch.topk_ids,
            batch.topk_logprobs,
            batch.ce_weight,
            batch.kl_weight,
            self.temperature,
            self.tail,
            self.chunk_tokens,
        )
