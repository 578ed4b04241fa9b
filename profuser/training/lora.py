"""Low-rank adapters (arXiv 2106.09685) for the target: adds them, describes them, and merges them into plain weights.

    y = W x + (alpha / rank) * B A x        A random, B initially zero; W is frozen

Legend: r rank, D_in and D_out features of a layer, E experts.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from profuser.errors import UserError
from profuser.models.classes import text_parameters
from profuser.recipe.fusing import LoraConfig

ADAPTER = "default"
MARK = "lora_"
"""Prefix of the names of an adapter's parameters."""


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Adds adapters to linear layers and to experts that Transformers stores as one parameter, in place; only they are trainable.

    Each expert has an adapter of the configured rank. peft has no dropout for experts' adapters: with `dropout` they get none.
    Of a multimodal model only the text part gets adapters.

    Raises:
        UserError: a name in `fuse.lora.modules` matches nothing that can have an adapter, or only the output layer, whose weight
            the loss reads directly.
    """
    from peft import LoraConfig as Peft
    from peft import inject_adapter_in_model

    names = _chosen(model, config)
    experts = [name for name in names if name in expert_parameters(model)]
    settings = Peft(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[f"model.{name}" for name in names if name not in experts],
        target_parameters=[f"model.{name}" for name in experts] or None,
    )
    # Wrapped, since peft reads a Transformers model's names as those of Transformers 4 and would adapt other experts.
    inject_adapter_in_model(settings, nn.ModuleDict({"model": model}), ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(MARK in name)


def expert_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Returns the matrices of all experts of a layer that are stored as one parameter, `[experts, rows, columns]`, by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        if "Experts" in type(module).__name__
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and MARK not in own
    }


def describe_adapters(model: Any, config: LoraConfig) -> str:
    """Returns a line on which weights of a model with adapters are trained, and which matrices are not."""
    adapted = {weight_name(name, layer) for name, layer in adapted_layers(model).items()}
    matrices = {
        plain_name(name): each for name, each in model.named_parameters() if MARK not in name and each.ndim >= 2
    }
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    whole = sum(each.numel() for name, each in model.named_parameters() if MARK not in name)
    why = ""
    if config.dropout and expert_parameters(model):
        why = "; with fuse.lora.dropout above 0 experts get no adapters"
    return (
        f"fuse.lora: adapters of rank {config.rank} on {_listed(adapted)}: {trained:,} trained values beside {whole:,}; "
        f"not trained: {_listed(matrices.keys() - adapted)}, norms and biases{why}"
    )


def _listed(names: Iterable[str]) -> str:
    """Returns the last parts of parameters' names, each with its count: `down_proj (48), q_proj (48)`."""
    counts = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in names)
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))


def weight_name(name: str, layer: Any) -> str:
    """Returns the name, without adapters, of the weight that a layer adapts."""
    return plain_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}")


def is_expert(layer: Any) -> bool:
    """Returns whether a layer with an adapter holds experts' matrices as one parameter."""
    return hasattr(layer, "parameter_name")


def plain_name(name: str) -> str:
    """Returns a parameter's name without adapters; experts with two adapted parameters are wrapped twice."""
    return name.replace(".base_layer", "")


def _chosen(model: Any, config: LoraConfig) -> list[str]:
    """Returns the linear layers and experts whose last name parts the recipe names; all but the output layer if it names none."""
    from transformers.pytorch_utils import Conv1D

    head, text = model.get_output_embeddings(), text_parameters(model)
    layers = [
        name
        for name, layer in model.named_modules()
        # Not a linear layer with a forward pass of its own, as Llama 4's router, to whose result peft cannot add.
        if type(layer).forward in (nn.Linear.forward, Conv1D.forward)
        and layer is not head
        and (text is None or f"{name}.weight" in text)
    ]
    if not config.dropout:
        layers += [name for name in expert_parameters(model) if text is None or name in text]
    chosen = {module: [name for name in layers if f".{name}".endswith(f".{module}")] for module in config.modules}
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
    """Returns a layer's whole weight with its adapter merged: `W + (alpha / rank) * B A`, for experts each with its own.

    Args:
        layer: the layer with its adapter.
        weight: `[D_out, D_in]`, or transposed if the layer stores it so (GPT-2's); of E experts `[E, D_out, D_in]`, or transposed.
        a: `[r, D_in]`; of experts `[E * r, D_in]`, expert by expert.
        b: `[D_out, r]`; of experts `[D_out, r * E]`, the experts innermost.
    """
    if not is_expert(layer):
        delta = (b @ a) * layer.scaling[ADAPTER]
        return weight + (delta.T if getattr(layer, "fan_in_fan_out", False) else delta)
    count = len(weight)
    # peft's layout, `lora.ParamWrapper.get_delta_weight`; Transformers marks experts stored `[E, D_in, D_out]` as transposed.
    delta = torch.einsum("ore,eri->eoi", b.reshape(len(b), -1, count), a.reshape(count, -1, a.shape[-1]))
    transposed = getattr(layer.get_base_layer(), "is_transposed", False)
    return weight + (delta.transpose(1, 2) if transposed else delta) * layer.scaling[ADAPTER]
