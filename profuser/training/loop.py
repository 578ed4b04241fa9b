"""The training loop: owns time, logging and checkpoints. It runs on one process, or on several with torch.distributed."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig, OptimizerConfig
from profuser.schemas import MODES
from profuser.training.examples import ExampleStore, Update, UpdatePlan
from profuser.training.output_head import check_head
from profuser.training.step import FusionModule, MicroBatch, collate


@dataclass(frozen=True)
class StepMetrics:
    """What one update did. Losses are in nats per response token of their mode; None for a mode without weight."""

    step: int
    num_steps: int
    learning_rate: float
    weight_inference: float
    weight_training: float
    ce_inference_nats: float | None
    kl_inference_nats: float | None
    ce_training_nats: float | None
    kl_training_nats: float | None
    grad_norm: float
    tokens: int
    tokens_per_second: float
    skipped_steps: int

    def known(self) -> dict[str, float]:
        """The values that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up from 0, then a cosine to `final_fraction` of the peak at the last update."""
    warmup = math.ceil(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    share = config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share


def load_target(path: str, revision: str | None) -> Any:
    """The target in float32, as its master weights; UserError where the fusion loss does not know its output layer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=torch.float32)
    check_head(model, path)
    return model


class Trainer:
    """The target, sharded over the workers where there are several, its optimizer and its place in the plan."""

    def __init__(self, model: Any, store: ExampleStore, config: FuseConfig, seed: int, top_k: int, device: str = "cpu"):
        distributed = dist.is_initialized()
        self.world_size = dist.get_world_size() if distributed else 1
        rank = dist.get_rank() if distributed else 0
        self.config, self.store, self.top_k, self.device = config, store, top_k, torch.device(device)
        self.plan = UpdatePlan(store, config, seed, self.world_size, rank)
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.pad_id = model.config.get_text_config().pad_token_id or 0
        self.module: nn.Module = FusionModule(model.to(self.device).train(), config)
        if distributed:
            shard(self.module, config, self.device)
        opt = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=opt.learning_rate,
            betas=(opt.beta1, opt.beta2),
            weight_decay=opt.weight_decay,
            fused=True,
        )
        self.step = 0
        self.skipped = 0
        self.consecutive_skips = 0
        self.history: list[dict[str, float]] = []

    def run(self, on_step: Callable[[StepMetrics], None], on_checkpoint: Callable[["Trainer"], None]) -> None:
        """Runs the updates that are left; `on_checkpoint` is called every so many of them and after the last.

        Raises:
            TrainingError: too many steps in a row had a gradient that is not finite.
        """
        while self.step < self.plan.num_steps:
            metrics = self.train_step(self.plan.update(self.step))
            self.step += 1
            self.history.append(metrics.known())
            on_step(metrics)
            if self.step % self.config.checkpoint_every_steps == 0 or self.step == self.plan.num_steps:
                on_checkpoint(self)

    def train_step(self, update: Update) -> StepMetrics:
        """One update: all micro-batches, clipping, and the optimizer, unless the gradient is not finite."""
        start = time.perf_counter()
        rate = learning_rate(self.config.optimizer, update.step, self.plan.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(2, len(MODES), device=self.device)
        for indices in update.micro_batches:
            batch = self._collate(update, indices)
            losses = self.module(batch)
            # FSDP averages gradients over the workers; the denominators are already those of the whole batch.
            (losses.total * self.world_size).backward()
            for part, values in enumerate((losses.ce_nats, losses.kl_nats)):
                sums[part].index_add_(0, batch.mode, values.float())
        norm: Any = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.clip_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self._apply(update, grad_norm)
        if self.world_size > 1:
            dist.all_reduce(sums)
        return self._metrics(update, sums, rate, grad_norm, time.perf_counter() - start)

    def _collate(self, update: Update, indices: list[int]) -> MicroBatch:
        examples = [self.store.examples[index] for index in indices]
        batch = collate(examples, update.weights, update.num_tokens, self.config.beta, self.pad_id, self.top_k)
        return MicroBatch(*(tensor.to(self.device) for tensor in batch))

    def _apply(self, update: Update, grad_norm: float) -> None:
        if math.isfinite(grad_norm):
            self.optimizer.step()
            self.consecutive_skips = 0
        else:
            self.skipped += 1
            self.consecutive_skips += 1
            rows = ", ".join(self.plan.rows(update.step)[:8])
            print(f"step {update.step}: gradient norm {grad_norm}; skipped; rows {rows} ...", flush=True)
        self.optimizer.zero_grad(set_to_none=True)
        if self.consecutive_skips >= self.config.max_consecutive_skips:
            raise TrainingError(
                f"fuse: {self.consecutive_skips} steps in a row without a finite gradient, the last is step {update.step}; "
                "lower fuse.optimizer.learning_rate or look at the rows named above"
            )

    def _metrics(
        self, update: Update, sums: torch.Tensor, rate: float, grad_norm: float, seconds: float
    ) -> StepMetrics:
        nats: dict[str, float | None] = {}
        for part, name in enumerate(("ce", "kl")):
            for index, mode in enumerate(MODES):
                count = update.num_tokens[mode]
                nats[f"{name}_{mode}_nats"] = float(sums[part, index]) / count if count else None
        tokens = sum(update.num_tokens.values())
        return StepMetrics(
            step=update.step,
            num_steps=self.plan.num_steps,
            learning_rate=rate,
            weight_inference=update.weights.inference,
            weight_training=update.weights.training,
            grad_norm=grad_norm,
            tokens=tokens,
            tokens_per_second=tokens / seconds,
            skipped_steps=self.skipped,
            **nats,
        )


def shard(module: nn.Module, config: FuseConfig, device: torch.device) -> None:
    """Shards parameters over all workers with FSDP2: each block by itself, the rest with the root."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    low = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if low else torch.float32
    # The root's parameters (output weight) stay whole between forward and backward by FSDP2's own default.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    model: Any = module.model
    blocks = set(model._no_split_modules or ())
    for child in model.modules():
        if type(child).__name__ in blocks:
            fully_shard(child, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
