"""Loads the target: whole in one process, or sharded over several workers.

With several workers, the model is created without memory for its parameters, sharded, and only then filled: each worker reads only
its share from the checkpoint.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from profuser.errors import UserError
from profuser.models.classes import language_model_class, text_parameters
from profuser.recipe.fusing import FuseConfig
from profuser.training.attention import set_attention
from profuser.training.checks import check_architecture, check_target
from profuser.training.lora import MARK, add_adapters, describe_adapters, fill_adapters, plain_name
from profuser.training.step import FusionModule


def load_target(
    path: str, revision: str | None, config: FuseConfig, device: torch.device, seed: int = 0
) -> FusionModule:
    """Loads the target with float32 master weights, ready to train: adapters, checkpointing, compiled blocks, shards.

    Args:
        path: a folder, or a name on the Hub.
        revision: Hub revision.
        config: trained parts, and use of memory.
        device: this worker's device.
        seed: seed of the adapters' initial values.

    Raises:
        UserError: the fusion loss does not support the target's output layer, or its architecture cannot be packed.
    """
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(path, revision=revision)
    if dist.is_initialized():
        empty = empty_model(settings, config)
        module = FusionModule(empty, config, device, compute_dtype(config, device))
        shard(module, config, device)
        _fill(module, path, revision, offloads(config, device))
    else:
        factory = language_model_class(settings)
        model = factory.from_pretrained(path, revision=revision, dtype=torch.float32)
        module = FusionModule(prepare(model, config).to(device), config)
    if config.lora:
        fill_adapters(module.model, seed)
    module.check(partial(check_target, path=path, packing=config.packing))
    module.reshard_gathered()
    return module


def check_trainable(path: str, revision: str | None, config: FuseConfig) -> list[str]:
    """Checks everything that would refuse a target when it is loaded. Reads no weights.

    Returns:
        Lines for the user: what is trained, and what could not be checked.

    Raises:
        UserError: Transformers has no class for it, it has no layer that `fuse.lora` names, it does not support `fuse.attention`,
            the fusion loss does not support its output layer, or packed examples would mix.
    """
    from transformers import AutoConfig

    # Workers may run on other machines: they get GPUs by default.
    device = torch.device("cpu" if config.workers.use_gpu is False else "cuda")
    try:
        settings = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        model = empty_model(settings, config)
        set_attention(model, config.attention, config.packing, device, compute_dtype(config, device))
    except (ValueError, OSError, ImportError) as error:
        raise UserError(
            f"target.model: {path}: {' '.join(str(error).split())[:300]} (a target is trained as a class of Transformers' own)"
        ) from None
    lines = [describe_adapters(model, config.lora)] if config.lora else []
    if (text := text_parameters(model)) is not None:
        whole, own = (sum(each.numel() for each in part) for part in (model.parameters(), text.values()))
        lines.append(
            f"target.model: {path}: {type(model).__name__} is multimodal; only its text part is trained ({own:,} of {whole:,} "
            "values)"
        )
    return [*lines, *filter(None, [check_architecture(settings, config, path)])]


def prepare(model: Any, config: FuseConfig) -> Any:
    """Chooses what is trained, and adds adapters, activation checkpointing and compilation, before anything is sharded."""
    model.train()
    if (text := text_parameters(model)) is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in text)
    if config.lora:
        add_adapters(model, config.lora)
    if config.memory.activation_checkpointing != "none":
        settings: dict[str, Any] = {"use_reentrant": False}
        if config.memory.activation_checkpointing == "selective":
            settings["context_fn"] = partial(create_selective_checkpoint_contexts, _Selective())
        model.activation_checkpointing_enable(settings)
    if config.memory.compile:
        for block in blocks(model):
            block.compile()
    return model


def blocks(model: Any) -> list[nn.Module]:
    """Returns the repeated blocks of a Hugging Face model: the modules that it declares must not be split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


class _Selective:
    """Keeps the results of attention and of every second matrix product, as torchtitan does; the rest is recomputed."""

    KEPT = (
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,  # registered by profuser.training.attention
    )

    def __init__(self) -> None:
        self.products = {False: 0, True: 0}

    def __call__(self, ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op is torch.ops.aten.mm.default:
            self.products[ctx.is_recompute] += 1
            kept = self.products[ctx.is_recompute] % 2 == 1
        else:
            kept = op in self.KEPT
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def compute_dtype(config: FuseConfig, device: torch.device) -> torch.dtype:
    """Returns the type in which parameters are used: by default bfloat16 on GPUs and float32 on CPUs."""
    low = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    return torch.bfloat16 if low else torch.float32


def offloads(config: FuseConfig, device: torch.device) -> bool:
    """Returns whether shards are kept in host memory: only if that is separate from the device's."""
    return config.memory.cpu_offload and device.type != "cpu"


def shard(module: FusionModule, config: FuseConfig, device: torch.device) -> None:
    """Shards parameters over all workers with FSDP2: each block separately, the rest with the root."""
    memory = config.memory
    # The root's parameters (output weight) stay whole between forward and backward by FSDP2's own default.
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        # Inputs other than ids (weights, the teacher's log-probabilities) keep their precision.
        "mp_policy": MixedPrecisionPolicy(compute_dtype(config, device), torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if offloads(config, device) else OffloadPolicy(),
    }
    for block in blocks(module.model):
        fully_shard(block, reshard_after_forward=memory.reshard_after_forward, **settings)
    fully_shard(module, **settings)
    register_fsdp_forward_method(module, "check")


def empty_model(model_config: Any, config: FuseConfig) -> Any:
    """Builds the model of a Transformers config without memory for its parameters; its buffers (rotary frequencies) have values."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        # Copied, since the model's attention is written into its config.
        model = language_model_class(model_config).from_config(deepcopy(model_config), dtype=torch.float32)
    model.tie_weights()  # init_empty_weights untied them; FSDP would shard both
    with init_empty_weights(include_buffers=False):
        return prepare(model, config)


def allocate(module: FusionModule, offloaded: bool = False) -> None:
    """Allocates the parameters of a sharded model, without values; its buffers keep theirs.

    Args:
        module: a sharded module.
        offloaded: whether parameters are kept in host memory.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    module.to_empty(device="cpu" if offloaded else module.device)
    for name, buffer in module.named_buffers():
        buffer.data = buffers[name].to(module.device)
    module.model.tie_weights()


def _fill(module: FusionModule, path: str, revision: str | None, offloaded: bool) -> None:
    """Allocates sharded parameters and reads this worker's share of them."""
    allocate(module, offloaded)
    model = module.model
    saved = model.state_dict().keys()
    wanted = {name: parameter.data for name, parameter in model.named_parameters() if MARK not in name}
    wanted |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    own = {plain_name(name): tensor for name, tensor in wanted.items()}
    try:
        dcp.load(own, storage_reader=HuggingFaceStorageReader(str(_folder(path, revision))))
    except (RuntimeError, KeyError, AssertionError, SafetensorError, dcp.api.CheckpointException):
        # A checkpoint that Transformers converts on loading (merged experts, pickled weights): the first worker loads it whole.
        _broadcast(module, path, revision, set(wanted))


def _folder(path: str, revision: str | None) -> Path:
    """Returns the folder of a checkpoint; downloads it from the Hub if needed."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _broadcast(module: FusionModule, path: str, revision: str | None, names: set[str]) -> None:
    from transformers import AutoConfig

    weights: dict[str, Any] = {}
    if dist.get_rank() == 0:
        factory = language_model_class(AutoConfig.from_pretrained(path, revision=revision))
        whole = factory.from_pretrained(path, revision=revision, dtype=torch.float32).state_dict()
        weights = {name: whole[plain_name(name)] for name in names}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(module.model, weights, options=options)
