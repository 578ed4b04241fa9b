"""The fused model as a plain Hugging Face folder: weights in the target's own type, tokenizer, chat template, generation settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from profuser.errors import ArtifactError
from profuser.training.lora import ADAPTER, MARK, adapted_layers, merged
from profuser.training.step import FusionModule

SHARD_SIZE = "5GB"


def export(module: FusionModule, target: str, revision: str | None, folder: Path) -> None:
    """Writes the fused model; adapters are merged into the weights.

    Every worker takes part in gathering the weights, one after another; the first one keeps them, in the checkpoint's type, and
    writes.

    Args:
        module: the trained target.
        target: what it was loaded from: a folder, or a name on the Hub.
        revision: of the Hub.
        folder: where to write to.

    Raises:
        ArtifactError: a weight of the target's architecture is missing.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(target, revision=revision)
    dtype = getattr(config.get_text_config(), "dtype", None) or torch.float32
    first = not dist.is_initialized() or dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, weight in whole_weights(module.model):
        if first:
            weights[name] = weight.to("cpu", dtype)
    if not first:
        return
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing = {name for name, _ in model.named_parameters()} - weights.keys()
    if missing:
        raise ArtifactError(f"fused model: no weights for {sorted(missing)[:3]}")
    try:
        model.generation_config = GenerationConfig.from_pretrained(target, revision=revision)
    except OSError:
        pass  # It has none: what Transformers makes of the model's config is as good.
    model.save_pretrained(folder, state_dict=weights, max_shard_size=SHARD_SIZE)
    AutoTokenizer.from_pretrained(target, revision=revision).save_pretrained(folder)


@torch.no_grad()
def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The model's weights one after another, whole, by the names that they have without adapters."""
    layers = adapted_layers(model)
    for name, parameter in model.named_parameters():
        if MARK in name:
            continue
        layer, _, rest = name.rpartition(".base_layer.")
        weight = _whole(parameter)
        if layer in layers and rest == "weight":
            a, b = (_whole(getattr(layers[layer], part)[ADAPTER].weight) for part in ("lora_A", "lora_B"))
            weight = merged(layers[layer], weight, a, b)
        yield (f"{layer}.{rest}" if layer else name), weight
    kept = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
