"""Estimates the device memory of an update of a target from its config, before training starts.

There are no formulas: the real code of the update runs on tensors that have shapes but no memory (`FakeTensorMode`), sharded over
workers that do not exist, and live bytes are counted. So it holds for any architecture that FSDP can train, and follows every
change of the loss, of checkpointing and of the optimizer.

Not included: the CUDA context, NCCL's buffers, workspaces within kernels, and fragmentation of the allocator; on a GPU these are
some GiB. `torch.compile` is ignored: it only lowers the memory of activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed import fake_pg  # noqa: F401, the import registers the backend
from transformers import masking_utils

from profuser.artifacts.schemas import MODES
from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.training.attention import Boundaries
from profuser.training.batches import micro_batches
from profuser.training.live_bytes import LiveBytes
from profuser.training.memory_plan import PARTS, SHARDED, MemoryPlan, Moment, Part
from profuser.training.optimizer import make_optimizer
from profuser.training.step import FusionModule, MicroBatch
from profuser.training.target import empty_model, shard

TOP_K = 10
"""Top-k of the teacher's distributions, which are negligible compared with logits."""
CPU = torch.device("cpu")


def estimate(
    model_config: Any,
    fuse_config: FuseConfig,
    world_size: int,
    dtype: Literal["float32", "bfloat16"],
    device: torch.device | None = None,
) -> MemoryPlan:
    """Estimates the memory of one device in the largest possible update: full sequences with only response tokens.

    It creates and destroys this process's process group: call it when there is none.

    Args:
        model_config: the target's Transformers config.
        fuse_config: training settings.
        world_size: number of devices.
        dtype: type in which parameters are used.
        device: kind of device whose attention and loss are planned; by default a GPU for bfloat16 and a CPU for float32.

    Raises:
        TrainingError: the model's code cannot run on tensors without values.
    """
    memory = fuse_config.memory.model_copy(update={"compile": False})
    config = fuse_config.model_copy(update={"dtype": dtype, "memory": memory})
    rows, length, accumulates = largest_micro_batch(config, world_size)
    boundaries = Boundaries.of(np.tile(np.arange(length), (rows, 1)), CPU)
    with _fake_workers(world_size):
        device = device or torch.device("cuda" if dtype == "bfloat16" else "cpu")
        module = FusionModule(empty_model(model_config, config), config, device, getattr(torch, dtype))
        shard(module, config, CPU)
        try:
            with _respect_packing(config), FakeTensorMode(allow_non_fake_inputs=True), LiveBytes("parameters") as live:
                optimizer = _fill(module, config, live)
                batch = _batch(rows, length, boundaries)
                if accumulates:
                    _backward(module, batch)
                moments = _update(module, optimizer, config, live, batch)
        except (RuntimeError, ValueError) as error:
            kind, reason = type(module.model).__name__, str(error).partition("\n")[0]
            raise TrainingError(f"fuse: the memory of {kind} cannot be determined before training: {reason}") from error
    host: dict[Part, int] = {}
    if memory.cpu_offload:
        host = {part: moments["step"][part] for part in SHARDED}
        for parts in moments.values():
            parts.update(dict.fromkeys(SHARDED, 0))
    return MemoryPlan(world_size, (rows, length), str(module.attention), moments, host)


def scale_to_devices(plan: MemoryPlan, fuse_config: FuseConfig) -> list[MemoryPlan]:
    """Scales the plan to 1, 2, 4 ... devices, up to twice as many; skips numbers with other micro-batches."""
    found = []
    for world_size in (2**power for power in range((2 * plan.world_size).bit_length())):
        *shape, accumulates = largest_micro_batch(fuse_config, world_size)
        if tuple(shape) == plan.micro_batch:
            found.append(plan.on(world_size, accumulates))
    return found


def largest_micro_batch(config: FuseConfig, world_size: int) -> tuple[int, int, bool]:
    """Returns sequences and tokens of each in an update's fullest micro-batch, and whether a worker has more than one of them."""
    length = min(config.max_tokens, config.batch_tokens)
    num_packs = config.batch_tokens // length
    dealt = micro_batches([[]] * num_packs, [length] * num_packs, config.micro_batch_tokens, world_size)
    return max(len(batch) for batch in dealt), length, len(dealt) > world_size


@contextmanager
def _fake_workers(world_size: int) -> Iterator[None]:
    """Creates a process group with this process as the first; its collectives do nothing."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _respect_packing(config: FuseConfig) -> Iterator[None]:
    """Makes Transformers respect `packing`: it detects it from positions, and takes positions without values for packed ones."""
    found = masking_utils.find_packed_sequence_indices
    if not config.packing:
        masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def _fill(module: FusionModule, config: FuseConfig, live: LiveBytes) -> torch.optim.Optimizer:
    """Gives parameters and the optimizer's moments their tensors, in the state between two updates."""
    module.to_empty(device=CPU)
    module.model.tie_weights()
    live.part = "gathered"
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()
    for parameter in module.parameters():
        live.assign(_local(parameter), "parameters")
    optimizer = make_optimizer(module, config.optimizer)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(lambda p: live.assign(_local(p.grad), "gradients"))
    live.part = "optimizer"
    # DTensor tries each operation once on tensors of the full size; here, where it is not counted.
    _step(module, optimizer, config)
    optimizer.zero_grad(set_to_none=True)
    live.part = "activations"
    return optimizer


def _update(
    module: FusionModule, optimizer: torch.optim.Optimizer, config: FuseConfig, live: LiveBytes, batch: MicroBatch
) -> dict[Moment, dict[Part, int]]:
    """Runs one micro-batch and the optimizer as the loop does; returns bytes per part at the peak of each moment."""
    moments: dict[Moment, dict[Part, int]] = {}

    def enter(part: Part, left: Moment | None = None) -> None:
        if left:
            moments[left] = {each: live.fullest[each] for each in PARTS}
        live.part = part
        live.reset()

    compute = module.hidden

    def hidden(*args: Any) -> Tensor:
        out = compute(*args)
        enter("loss", left="forward")
        out.register_hook(lambda grad: enter("backward", left="loss"))
        return out

    module.hidden = hidden  # type: ignore[method-assign]
    enter("activations")
    _backward(module, batch)
    enter("optimizer", left="backward")
    _step(module, optimizer, config)
    enter("optimizer", left="step")
    return moments


def _backward(module: FusionModule, batch: MicroBatch) -> None:
    module(batch, torch.ones(len(MODES))).total.backward()


def _step(module: FusionModule, optimizer: torch.optim.Optimizer, config: FuseConfig) -> None:
    nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_norm)
    optimizer.step()


def _batch(rows: int, length: int, boundaries: Boundaries) -> MicroBatch:
    num_tokens = rows * length
    return MicroBatch(
        input_ids=torch.zeros(rows, length, dtype=torch.int64),
        position_ids=torch.arange(length).repeat(rows, 1),
        places=torch.arange(num_tokens),
        targets=torch.zeros(num_tokens, dtype=torch.int64),
        topk_ids=torch.zeros(num_tokens, TOP_K, dtype=torch.int64),
        topk_logprobs=torch.zeros(num_tokens, TOP_K),
        mode=torch.zeros(num_tokens, dtype=torch.int64),
        weight=torch.ones(num_tokens),
        pair=torch.zeros(num_tokens, dtype=torch.int64),
        reference=torch.zeros(0, 2),
        boundaries=boundaries,
    )


def _local(tensor: Any) -> Tensor:
    """Returns this worker's share of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
