"""Updates of Llamas with random weights: tokens/s, model FLOPs and memory; and the attention of packed examples."""

import importlib.util
import math
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.profiler import ProfilerActivity, profile

from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.training.attention import Boundaries, by_example, set_attention, varlen
from profuser.training.loop import Trainer
from profuser.training.memory import estimate
from profuser.training.step import FusionModule, MicroBatch
from profuser.training.step_metrics import ModelFlops, peak_tflops
from profuser.training.target import allocate, compute_dtype, empty_model, shard
from tests.benchmarks.examples import BOTH, Updates
from tests.benchmarks.gpu.device import (
    DEVICE,
    DTYPE,
    GPU,
    LEFT_OUT,
    Sizes,
    free,
    llama,
    process_group,
    reason,
    seconds_of,
    sync,
)
from tests.benchmarks.measure import Row

UPDATE_PACKS, STEPS = 4, 2
"""Micro-batches of an update, and updates that are timed together."""
MOST_MEMORY = 0.92
"""Share of the device's memory that a plan may fill; the rest is for what it does not count."""
PRODUCTS = ("gemm", "nvjet", "cutlass", "xmma", "cublas", "matmul", "mm_", "::mm", "addmm", "bmm", "linear")
ATTENTION = ("flash", "fmha", "attention", "attn")


def fuse_config(pack_tokens: int, num_packs: int, checkpointing: str = "none", **settings: Any) -> FuseConfig:
    """Returns a config of both modes with equal weights, over full packs."""
    sizes = {"max_tokens": pack_tokens, "micro_batch_tokens": pack_tokens, "batch_tokens": num_packs * pack_tokens}
    memory = {"activation_checkpointing": checkpointing}
    return FuseConfig.model_validate(
        {"schedule": list(BOTH), "duration": {"kind": "steps", "value": 1000}, "validation_rows": 0, "memory": memory}
        | sizes
        | settings
    )


def random_target(model_config: Any, config: FuseConfig) -> FusionModule:
    """Returns a sharded target with random weights, as in a worker of the stage."""
    module = FusionModule(empty_model(model_config, config), config, DEVICE, compute_dtype(config, DEVICE))
    shard(module, config, DEVICE)
    allocate(module)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    return module


def lightest(model_config: Any, pack_tokens: int) -> tuple[str, float | None]:
    """Returns the first activation checkpointing whose planned memory fits the device, and the planned bytes.

    Where an older PyTorch cannot plan it, the memory is unknown, and `full` is taken.
    """
    available = torch.cuda.get_device_properties(0).total_memory if GPU else math.inf
    for name in ("none", "selective", "full"):
        config = fuse_config(pack_tokens, UPDATE_PACKS, name)
        try:
            planned = estimate(model_config, config, 1, str(DTYPE).removeprefix("torch."), DEVICE).peak_bytes  # type: ignore[arg-type]
        except TrainingError as error:
            LEFT_OUT.append(f"memory as planned: {reason(error)}")
            return "full", None
        if planned < MOST_MEMORY * available:
            return name, planned
    raise RuntimeError(
        f"{planned / 2**30:.0f} GiB planned with full checkpointing; the device has {available / 2**30:.0f}"
    )


def update(sizes: Sizes, name: str, profiles: dict[str, Any]) -> Iterator[Row]:
    """Yields the rows of one target; adds the kernels that take the most time to `profiles`."""
    model_config = llama(sizes.targets[name])
    checkpointing, planned = lightest(model_config, sizes.pack_tokens)
    config = fuse_config(sizes.pack_tokens, UPDATE_PACKS, checkpointing)
    made = Updates(config, 4 * UPDATE_PACKS * sizes.pack_tokens // 100, model_config.vocab_size)
    with process_group():
        module = random_target(model_config, config)
        trainer = Trainer(module, made.plan, config, 0)
        module.plain = MethodType(_plain_loss, module)  # type: ignore[assignment]
        register_fsdp_forward_method(module, "plain")
        free()
        ways = {
            "fusion": lambda: _steps(trainer, made),
            "sft": lambda: _sft(trainer, made),
            "bare": lambda: _bare(trainer, made),
        }
        seconds = seconds_of(ways, sizes.rounds)
        rate = {way: STEPS * made.update.sequence_tokens / each for way, each in seconds.items()}
        lengths = torch.tensor([made.plan.index.tokens[key] for key in made.update.keys]).numpy()
        flops = ModelFlops.of(module.model).update(lengths, sum(made.update.num_tokens)) * STEPS / seconds["fusion"]
        title = f"{name}, packs of {sizes.pack_tokens:,}, checkpointing {checkpointing}, {module.attention}"
        yield Row(f"{title}: tokens/s, against plain SFT in this loop", rate["fusion"], "/s", rate["sft"], ">= 0.926 x")
        yield Row(
            f"{name}: tokens/s of SFT in this loop, against a bare loop", rate["sft"], "/s", rate["bare"], ">= 0.95 x"
        )
        peak = peak_tflops(DEVICE)
        yield Row(
            f"{name}: model FLOPs/s, against the device's",
            flops / 1e12,
            "TFLOP/s",
            peak,
            ">= 0.45 x" if name == "3B" else "",
        )
        if GPU:
            free()
            _steps(trainer, made)
            sync()
            measured = torch.cuda.max_memory_allocated() / 2**30
            if planned is not None:
                yield Row(
                    f"{name}: memory as planned, against measured", planned / 2**30, "GiB", measured, "0.9 to 1.1 x"
                )
        yield _profile(name, trainer, made, profiles)
        del module, trainer, ways
    free()


def _steps(trainer: Trainer, made: Updates) -> None:
    for _ in range(STEPS):
        trainer.train_step(made.update, made.packed)


def _sft(trainer: Trainer, made: Updates) -> None:
    """Runs the same loop without the teacher's loss (beta 0)."""
    beta, trainer.module.beta = trainer.module.beta, 0.0
    try:
        _steps(trainer, made)
    finally:
        trainer.module.beta = beta


def _bare(trainer: Trainer, made: Updates) -> None:
    """Runs hand-written SFT over the same sharded model: loss, clipping, step, no metrics."""
    module: Any = trainer.module
    for _ in range(STEPS):
        for each in made.packed:
            (module.plain(each.tensors(DEVICE)) / sum(made.update.num_tokens)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


def _plain_loss(module: FusionModule, batch: MicroBatch) -> torch.Tensor:
    """Returns the sum of the cross-entropy at response tokens, by Liger's fused kernel if installed."""
    hidden = module.hidden(batch.input_ids, batch.position_ids, batch.boundaries).flatten(0, 1)
    hidden = hidden.index_select(0, batch.places)
    weight = module.model.get_output_embeddings().weight
    if GPU and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        options = (None, None, -100, 0.0, 0.0, "sum")  # bias, weights of classes, ignored, z-loss, smoothing
        return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, batch.targets, *options)[0]
    return nn.functional.cross_entropy((hidden @ weight.T).float(), batch.targets, reduction="sum")


def _profile(name: str, trainer: Trainer, made: Updates, profiles: dict[str, Any]) -> Row:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as profiler:
        trainer.train_step(made.update, made.packed)
        sync()
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    events = [(event.key, getattr(event, key) / 1e3, event.count) for event in profiler.key_averages()]
    events = sorted((event for event in events if event[1] > 0), key=lambda event: -event[1])
    total = sum(milliseconds for _, milliseconds, _ in events)
    useful = sum(ms for kernel, ms, _ in events if any(word in kernel.lower() for word in PRODUCTS + ATTENTION))
    profiles[name] = [{"kernel": kernel[:120], "ms": round(ms, 3), "count": count} for kernel, ms, count in events[:25]]
    return Row(f"{name}: kernel time that is neither products nor attention", 100 * (1 - useful / total), "%")


def attention(sizes: Sizes) -> Iterator[Row]:
    """Measures the kernel against a mask, per step, and packed examples against padded ones, on one target."""
    model_config = llama(sizes.attention)
    config = fuse_config(sizes.pack_tokens, UPDATE_PACKS)
    made = Updates(config, 4 * UPDATE_PACKS * sizes.pack_tokens // 100, model_config.vocab_size)
    padded = made.padded(max(1, sizes.pack_tokens // 512))
    yield _kernel_agrees()
    with process_group():
        trainer = Trainer(random_target(model_config, config), made.plan, config, 0)
        module = trainer.module

        def step(wanted: str, packing: bool):
            def way() -> None:
                module.packing = packing
                set_attention(module.model, wanted, packing, DEVICE, DTYPE)  # type: ignore[arg-type]
                trainer.train_step(made.update, made.packed if packing else padded)

            return way

        ways = {"varlen": step("varlen", True), "mask": step("sdpa", True), "padded": step("sdpa", False)}
        if GPU:
            ways["flex"] = step("flex_attention", True)
        seconds = seconds_of(ways, sizes.rounds)
        rate = {way: made.update.sequence_tokens / each for way, each in seconds.items()}
        title = "useful tokens/s of a step with variable-length attention"
        reach = {"padded": ">= 2 x", "mask": "> 1 x", "flex": ""}
        words = {"padded": "one example a row", "mask": "SDPA with a mask", "flex": "flex_attention"}
        for name in reach:
            if name in rate:
                yield Row(f"{title}, against {words[name]}", rate["varlen"], "/s", rate[name], reach[name])
        del module, trainer, ways
    free()


def _kernel_agrees() -> Row:
    """Compares the variable-length kernel with SDPA per example: grouped heads, a window, gradients of all inputs."""
    torch.manual_seed(0)
    lengths = [5, 130, 1, 64]
    positions = torch.cat([torch.arange(n) for n in lengths])[None].numpy()
    arguments = Boundaries.of(positions, DEVICE).arguments()
    shapes = [(1, heads, sum(lengths), 64) for heads in (8, 2, 2)]
    query, key, value = (torch.randn(shape, device=DEVICE, dtype=DTYPE).requires_grad_() for shape in shapes)
    found = []
    functions: list[Any] = [varlen, by_example] if GPU else [by_example, by_example]
    for function in functions:
        out = function(None, query, key, value, None, 0.2, sliding_window=33, **arguments)[0]
        grads = torch.autograd.grad((out.float() * torch.arange(64, device=DEVICE)).sum(), (query, key, value))
        found.append(torch.cat([each.detach().float().reshape(-1) for each in (out, *grads)]))
    difference = float((found[0] - found[1]).norm() / found[1].norm())
    return Row(
        "attention: output and gradients of the kernel, off SDPA's", difference, "of their norm", None, "<= 0.02"
    )
