"""AdamW and its learning rate schedule."""

import math

import torch
from torch import Tensor, nn

from profuser.recipe.fusing import OptimizerConfig


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns fused AdamW over trainable parameters. Set `found_inf` on it (1 if a gradient is not finite) before each step."""
    return torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Returns the learning rate: linear warm-up from 0, then a cosine to `final_fraction` of the peak at the last update."""
    warmup = math.ceil(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    share = config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share


def step_if_finite(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
    """Steps the optimizer if the gradient's norm is finite, else changes nothing; then frees the gradients.

    The decision is made on the device, as for a gradient scaler, so that the host does not wait for the norm.
    """
    optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
