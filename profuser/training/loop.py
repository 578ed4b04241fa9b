"""The training loop: owns time, logging and checkpoints. It runs on one process, or on several with torch.distributed."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig, OptimizerConfig
from profuser.schedule import Schedule
from profuser.schemas import MODES
from profuser.training.batches import Update, UpdatePlan
from profuser.training.guards import SpikeWatch, memory_named, worst_rows
from profuser.training.metrics import ModelFlops, StepMetrics, peak_memory_gib, peak_tflops
from profuser.training.step import FusionModule, PackedExamples

Record = dict[str, float]
"""What an update did, by name; at a checkpoint held-out bits per byte besides."""
Stream = Callable[["Trainer"], Iterator[tuple[Update, list[PackedExamples]]]]
"""The updates that are left of a trainer's plan, with this worker's micro-batches."""
HELDOUT = "heldout_bits_per_byte"


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; on every worker."""

    on_step: Callable[[Record], None] = lambda record: None
    on_checkpoint: Callable[["Trainer"], None] = lambda trainer: None
    wants_stop: Callable[[], bool] = lambda: False
    """Asked on every worker with each update; if any says yes, all write a checkpoint after it and stop."""
    wants_checkpoint: Callable[[], bool] = lambda: False
    """Asked on every worker after each update that none is due after; all give the same answer."""


class Trainer:
    """The target, its optimizer and its place in the plan.

    Args:
        module: the target, sharded where there are several workers.
        plan: which rows make up which update.
        config: how it is trained.
        seed: of what is random within a step (dropout).
        validation: this worker's micro-batches of the rows that are kept apart; every worker has as many.
    """

    def __init__(
        self,
        module: FusionModule,
        plan: UpdatePlan,
        config: FuseConfig,
        seed: int,
        validation: Sequence[PackedExamples] = (),
    ):
        self.module, self.plan, self.config, self.seed, self.validation = module, plan, config, seed, validation
        self.world_size, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.device = module.device
        self.schedule = Schedule(config.schedule, plan.num_steps)
        self.optimizer = make_optimizer(module, config.optimizer)
        self.spikes = SpikeWatch(config.guards.spike_deviations)
        self.flops, self.peak_tflops = ModelFlops.of(module.model), peak_tflops(self.device)
        self.step = self.cursor = self.skipped = self.consecutive_skips = 0
        self.history: list[Record] = []

    def run(self, stream: Stream, hooks: Hooks) -> bool:
        """Runs the updates that are left; False if it was stopped before the last one.

        A stage that ends early makes what the stream had prepared void: a new stream begins.

        Raises:
            TrainingError: too many steps in a row had a gradient that is not finite, or memory ran out.
        """
        with memory_named(self.config, self.device):
            while self.step < self.plan.num_steps:
                for update, batches in stream(self):
                    moved_on, stopped = self._advance(update, batches, hooks)
                    if stopped:
                        return False
                    if moved_on:
                        break
        return True

    def _advance(self, update: Update, batches: list[PackedExamples], hooks: Hooks) -> tuple[bool, bool]:
        """One update and what follows from it: whether the stage has ended early, and whether training was told to stop."""
        metrics, stopped = self.train_step(update, batches, hooks.wants_stop())
        self.step, self.cursor = update.step + 1, update.end
        moved_on = self.schedule.observe(update.step, metrics.ce_inference_nats)
        due = self.step % self.config.checkpoint_every_steps == 0 or self.step == self.plan.num_steps
        record = metrics.known() | (self.validate() if due else {})
        self.history.append(record)
        hooks.on_step(record)
        if due or stopped or hooks.wants_checkpoint():
            hooks.on_checkpoint(self)
        return moved_on, stopped and self.step < self.plan.num_steps

    def train_step(
        self, update: Update, batches: Sequence[PackedExamples], wants_stop: bool = False
    ) -> tuple[StepMetrics, bool]:
        """One update: all micro-batches, clipping, and the optimizer, unless the gradient is not finite.

        Returns:
            What it did, and whether any worker wants to stop.
        """
        start = time.perf_counter()
        torch.manual_seed(hash((self.seed, update.step, self.rank)) % 2**63)
        rate = self._learning_rate(update.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scale = torch.tensor(
            [getattr(update.weights, m) / (n or 1.0) for m, n in zip(MODES, update.weighted_tokens, strict=True)]
        )
        scale = scale.to(self.device)
        sums = torch.zeros(2 * len(MODES) + 1, device=self.device)
        ce_nats = []
        for each in batches:
            batch = each.tensors(self.device)
            losses = self.module(batch, scale)
            # FSDP averages gradients over the workers; the denominators are already those of the whole batch.
            (losses.total * self.world_size).backward()
            for part, values in enumerate((losses.ce_nats, losses.kl_nats)):
                sums[part * len(MODES) :].index_add_(0, batch.mode, values.float())
            ce_nats.append(losses.ce_nats)
        norm: Any = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.clip_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        sums[-1] = float(wants_stop)
        if self.world_size > 1:
            dist.all_reduce(sums)
        finite = self._apply(update.step, grad_norm)
        metrics = self._metrics(update, sums.tolist(), rate, grad_norm, time.perf_counter() - start)
        self._watch(metrics, finite, batches, ce_nats)
        return metrics, bool(sums[-1] > 0)

    @torch.no_grad()
    def validate(self) -> Record:
        """Bits per byte of the rows that are kept apart, by mode: `sum(CE) / (ln 2 * bytes of the responses)`.

        The one without a mode's name is that of the ground truth; of the sources' answers where there is no ground truth.
        """
        if len(self.plan.apart) == 0:
            return {}
        self.module.eval()
        sums = torch.zeros(2, len(MODES), dtype=torch.float64, device=self.device)
        for each in self.validation:
            batch = each.tensors(self.device)
            losses = self.module(batch, torch.ones(len(MODES), device=self.device))
            sums[0].index_add_(0, batch.mode, losses.ce_nats.double())
            sizes = torch.from_numpy(each.response_bytes).to(self.device)
            sums[1].index_add_(0, torch.from_numpy(each.mode).to(self.device, torch.int64), sizes)
        self.module.train()
        self.module.let_go()
        if self.world_size > 1:
            dist.all_reduce(sums)
        nats, num_bytes = sums.tolist()
        found = {m: n / (math.log(2) * b) for m, n, b in zip(MODES, nats, num_bytes, strict=True) if b}
        return {HELDOUT: next(iter(found.values()))} | {f"{HELDOUT}_{mode}": value for mode, value in found.items()}

    def _learning_rate(self, step: int) -> float:
        config = self.config.optimizer
        if config.decay == "run":
            return learning_rate(config, step, self.plan.num_steps)
        _, first, end = self.schedule.piece(step)
        return learning_rate(config, step - first, end - first)

    def _apply(self, step: int, grad_norm: float) -> bool:
        """Steps the optimizer; False where the gradient is not finite and nothing was done."""
        finite = math.isfinite(grad_norm)
        if finite:
            self.optimizer.step()
            self.consecutive_skips = 0
        else:
            self.skipped += 1
            self.consecutive_skips += 1
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def _watch(self, metrics: StepMetrics, finite: bool, batches: Sequence[PackedExamples], ce_nats: list[Any]) -> None:
        """Names the rows of an update that is not finite or whose loss spikes. All workers see the same numbers."""
        losses = {"inference": metrics.ce_inference_nats, "training": metrics.ce_training_nats}
        spikes = self.spikes.observe(losses)
        if finite and not spikes:
            return
        rows = ", ".join(f"{row} ({mean:.2f})" for mean, row in worst_rows(batches, ce_nats))
        what = (
            f"cross-entropy spikes ({', '.join(spikes)})" if finite else f"gradient norm {metrics.grad_norm}; skipped"
        )
        line = f"step {metrics.step}: {what}; highest nats per token: {rows}"
        if self.rank == 0:
            print(line, flush=True)
        if self.consecutive_skips >= self.config.guards.max_consecutive_skips:
            raise TrainingError(
                f"fuse: {self.consecutive_skips} steps in a row without a finite gradient, the last is {line}; "
                "lower fuse.optimizer.learning_rate or look at these rows"
            )

    def _metrics(self, update: Update, sums: list[float], rate: float, grad_norm: float, seconds: float) -> StepMetrics:
        nats: dict[str, float | None] = {}
        for index, mode in enumerate(MODES):
            count = update.num_tokens[index]
            for part, name in enumerate(("ce", "kl")):
                nats[f"{name}_{mode}_nats"] = sums[part * len(MODES) + index] / count if count else None
        lengths = np.array([self.plan.index.tokens[key] for key in update.keys])
        tflops = self.flops.update(lengths, sum(update.num_tokens)) / seconds / self.world_size / 1e12
        return StepMetrics(
            step=update.step,
            num_steps=self.plan.num_steps,
            stage=self.schedule.piece(update.step)[0],
            learning_rate=rate,
            weight_inference=update.weights.inference,
            weight_training=update.weights.training,
            grad_norm=grad_norm,
            tokens=sum(update.num_tokens),
            sequence_tokens=update.sequence_tokens,
            tokens_per_second=update.sequence_tokens / seconds,
            model_tflops=tflops,
            model_flops_utilisation=tflops / self.peak_tflops if self.peak_tflops else None,
            memory_gib=peak_memory_gib(self.device),
            skipped_steps=self.skipped,
            **nats,
        )


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Fused AdamW over what is trained."""
    return torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up from 0, then a cosine to `final_fraction` of the peak at the last update."""
    warmup = math.ceil(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    share = config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share
