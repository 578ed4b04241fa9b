"""What an update of a target will hold in a device's memory, known from its config before anything is paid for.

There are no formulas: the update itself is run, with its real code, on tensors that have shapes but no memory (`FakeTensorMode`),
sharded over workers that are not there, and what is alive is added up. So it holds for any architecture that FSDP can train,
and follows every change of the loss, of checkpointing and of the optimizer.

Not in it: the CUDA context, NCCL's buffers, workspaces within kernels, and what the allocator loses to fragments; on a GPU
these are some GiB. `torch.compile` is left out: it only lowers what activations take.
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
from torch.testing._internal.distributed import fake_pg  # noqa: F401, the import makes the backend known
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
from profuser.training.target import hollow, shard

TOP_K = 10
"""Of the teacher's distributions: they hardly weigh beside logits."""
CPU = torch.device("cpu")


def estimate(
    model_config: Any,
    fuse_config: FuseConfig,
    world_size: int,
    dtype: Literal["float32", "bfloat16"],
    device: torch.device | None = None,
) -> MemoryPlan:
    """Memory of one device in an update of the largest kind: full sequences, of which every token is a response's.

    It makes, and takes down, the process group of this process: call it where there is none.

    Args:
        model_config: the target's, of Transformers.
        fuse_config: how it is trained.
        world_size: devices.
        dtype: in which parameters are used.
        device: whose attention and loss are planned, by kind; by default a GPU for bfloat16 and a CPU for float32.

    Raises:
        TrainingError: the model's code cannot run on tensors without values.
    """
    memory = fuse_config.memory.model_copy(update={"compile": False})
    config = fuse_config.model_copy(update={"dtype": dtype, "memory": memory})
    rows, length, accumulates = largest_micro_batch(config, world_size)
    boundaries = Boundaries.of(np.tile(np.arange(length), (rows, 1)), CPU)
    with _pretended_workers(world_size):
        device = device or torch.device("cuda" if dtype == "bfloat16" else "cpu")
        module = FusionModule(hollow(model_config, config), config, device, getattr(torch, dtype))
        shard(module, config, CPU)
        try:
            with _examples_seen(config), FakeTensorMode(allow_non_fake_inputs=True), LiveBytes("parameters") as live:
                optimizer = _fill(module, config, live)
                batch = _batch(rows, length, boundaries)
                if accumulates:
                    _backward(module, batch)
                moments = _update(module, optimizer, config, live, batch)
        except (RuntimeError, ValueError) as error:
            kind, reason = type(module.model).__name__, str(error).partition("\n")[0]
            raise TrainingError(f"fuse: the memory of {kind} cannot be told before training: {reason}") from error
    host: dict[Part, int] = {}
    if memory.cpu_offload:
        host = {part: moments["step"][part] for part in SHARDED}
        for parts in moments.values():
            parts.update(dict.fromkeys(SHARDED, 0))
    return MemoryPlan(world_size, (rows, length), str(module.attention), moments, host)


def on_other_devices(plan: MemoryPlan, fuse_config: FuseConfig) -> list[MemoryPlan]:
    """About the same for 1, 2, 4 ... devices, to twice as many; left out where the micro-batches would be others."""
    found = []
    for world_size in (2**power for power in range((2 * plan.world_size).bit_length())):
        *shape, accumulates = largest_micro_batch(fuse_config, world_size)
        if tuple(shape) == plan.micro_batch:
            found.append(plan.on(world_size, accumulates))
    return found


def largest_micro_batch(config: FuseConfig, world_size: int) -> tuple[int, int, bool]:
    """Sequences and tokens of each in the fullest micro-batch of an update, and whether a worker has more than one of them."""
    length = min(config.max_tokens, config.batch_tokens)
    num_packs = config.batch_tokens // length
    dealt = micro_batches([[]] * num_packs, [length] * num_packs, config.micro_batch_tokens, world_size)
    return max(len(batch) for batch in dealt), length, len(dealt) > world_size


@contextmanager
def _pretended_workers(world_size: int) -> Iterator[None]:
    """A process group of which this process is the first; its collectives do nothing."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _examples_seen(config: FuseConfig) -> Iterator[None]:
    """Stops Transformers from looking for packed examples unless they are packed: fake positions have no values to look at."""
    found = masking_utils.find_packed_sequence_indices
    if not config.packing:
        masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def _fill(module: FusionModule, config: FuseConfig, live: LiveBytes) -> torch.optim.Optimizer:
    """Gives parameters and the optimizer's moments their tensors, as they are between two updates."""
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
    # DTensor tries each operation on tensors of the whole size once; here, where it does not count.
    _step(module, optimizer, config)
    optimizer.zero_grad(set_to_none=True)
    live.part = "activations"
    return optimizer


def _update(
    module: FusionModule, optimizer: torch.optim.Optimizer, config: FuseConfig, live: LiveBytes, batch: MicroBatch
) -> dict[Moment, dict[Part, int]]:
    """Runs one micro-batch and the optimizer as the loop does; bytes per part at the fullest instant of each moment."""
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
        boundaries=boundaries,
    )


def _local(tensor: Any) -> Tensor:
    """This worker's share of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
