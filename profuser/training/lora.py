"""Low-rank adapters (arXiv 2106.09685) for the target: adds them, and merges them into plain weights.

    y = W x + (alpha / rank) * B A x        A random, B initially zero; W is frozen

Legend: r rank, D_in and D_out features of a layer.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from profuser.errors import UserError
from profuser.recipe.fusing import LoraConfig

ADAPTER = "default"
MARK = "lora_"
"""Prefix of the names of an adapter's parameters."""


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Adds adapters to linear layers, in place; only the adapters are trainable.

    Experts that Transformers stores as one parameter are not linear layers and get none.

    Raises:
        UserError: a name in `fuse.lora.modules` matches no linear layer, or only the output layer, whose weight the loss reads
            directly.
    """
    from peft import LoraConfig as Peft
    from peft import inject_adapter_in_model

    names = [f"model.{name}" for name in _layers_to_adapt(model, config.modules)]
    settings = Peft(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names)  # type: ignore[arg-type]
    # Wrapped, since peft reads a Transformers model's names as those of Transformers 4 and would adapt the experts.
    inject_adapter_in_model(settings, nn.ModuleDict({"model": model}), ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(MARK in name)


def _layers_to_adapt(model: Any, modules: Sequence[str]) -> list[str]:
    """Returns the linear layers whose last name parts the recipe names; all but the output layer if it names none."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = [
        name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head
    ]
    chosen = {module: [name for name in layers if f".{name}".endswith(f".{module}")] for module in modules}
    for module, names in chosen.items():
        if not names:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise UserError(
                f"fuse.lora.modules: {module!r} names no linear layer of {type(model).__name__} that can have an adapter; "
                f"it has {known}"
            )
    return sorted({name for names in chosen.values() for name in names}) or layers


@torch.no_grad()
def fill_adapters(model: Any, seed: int) -> None:
    """Initialises adapters, identically for any number of workers: A uniform within 1 / sqrt(D_in), B zero."""
    for name, layer in adapted_layers(model).items():
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        bound = 1 / math.sqrt(a.shape[1])
        random = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        first = torch.empty(a.shape, dtype=a.dtype).uniform_(-bound, bound, generator=random).to(a.device)
        a.copy_(distribute_tensor(first, a.device_mesh, a.placements) if isinstance(a, DTensor) else first)
        b.zero_()


def adapted_layers(model: Any) -> dict[str, Any]:
    """Returns the layers that have adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged(layer: Any, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns a layer's whole weight with its adapter merged: `W + (alpha / rank) * B A`.

    Args:
        layer: the layer with its adapter.
        weight: `[D_out, D_in]`, or transposed if the layer stores it so (GPT-2's).
        a: `[r, D_in]`.
        b: `[D_out, r]`.
    """
    delta = (b @ a) * layer.scaling[ADAPTER]
    return weight + (delta.T if getattr(layer, "fan_in_fan_out", False) else delta)
