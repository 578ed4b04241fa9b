"""The training loop: owns time, logging and checkpoints. Runs in one process, or in several with torch.distributed."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from profuser.artifacts.schemas import MODES, MODES_OF_PARTS, PAIR, PARTS
from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.schedule import Schedule
from profuser.training.batches import Update, UpdatePlan
from profuser.training.guards import SpikeWatch, explain_out_of_memory, worst_rows
from profuser.training.optimizer import learning_rate, make_optimizer, step_if_finite
from profuser.training.preference import PREFERRED
from profuser.training.reference import Reference
from profuser.training.step import FusionModule, PackedExamples, on_device
from profuser.training.step_metrics import ModelFlops, StepMetrics, peak_memory_gib, peak_tflops

Record = dict[str, float]
"""Metrics of an update by name; at a checkpoint also held-out bits per byte."""
HELDOUT = "heldout_bits_per_byte"
OF_PAIRS = ("preference_nats", "preference_lead", "preference_accuracy")
"""Means over the pairs of an update: loss, lead of the better answer in reward, and share of pairs where it leads."""


@runtime_checkable
class Stream(Protocol):
    """Yields the remaining updates of a trainer's plan, with this worker's micro-batches."""

    def __call__(self, trainer: "Trainer", only_pairs: bool = False) -> Iterator[tuple[Update, list[PackedExamples]]]:
        """Starts at the trainer's position; with `only_pairs`, the updates have no other examples."""
        ...


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop, called on every worker."""

    on_step: Callable[[Record], None] = lambda record: None
    on_checkpoint: Callable[["Trainer"], None] = lambda trainer: None
    wants_stop: Callable[[], bool] = lambda: False
    """Called on every worker with each update; if any returns True, all write a checkpoint after it and stop."""
    wants_checkpoint: Callable[[], bool] = lambda: False
    """Called on every worker after each update without a due checkpoint; all must return the same."""


@dataclass(frozen=True, eq=False)
class LaunchedStep:
    """An update that a device may still be executing."""

    update: Update
    batches: Sequence[PackedExamples]
    ce_nats: list[Tensor]
    """Cross-entropy per response token of each micro-batch."""
    numbers: Tensor
    """On the host once `done`: CE sums and KL sums by `PARTS`; loss, lead and correct order summed over pairs; workers that want
    to stop; gradient norm."""
    done: Any
    """CUDA event; None if there is nothing to wait for."""
    learning_rate: float
    start: float
    """Launch time, in seconds of `time.perf_counter`."""


class Trainer:
    """The target, its optimizer and its position in the plan.

    Args:
        module: the target, sharded if there are several workers.
        plan: the rows of each update.
        config: training settings.
        seed: seed of randomness within a step (dropout).
        validation: this worker's micro-batches of the validation rows; every worker has equally many.
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
        self.reference = Reference()
        self.flops, self.peak_tflops = ModelFlops.of(module.model), peak_tflops(self.device)
        self.step = self.cursor = self.skipped = self.consecutive_skips = 0
        self.history: list[Record] = []
        moves_on = any(piece.moves_on for piece in config.schedule)
        self.overlaps = self.device.type == "cuda" and not moves_on
        """Whether an update's numbers are read, logged and checked while the next one runs, so that the device never waits for the
        host. A piece of the schedule that may end early needs the losses before the next update."""
        self._launched: LaunchedStep | None = None
        self._last_done = 0.0

    def run(self, stream: Stream, hooks: Hooks) -> bool:
        """Runs the remaining updates; returns False if stopped before the last one.

        If a piece of the schedule ends early, the updates prepared by the stream are invalid, and a new stream starts. Before a
        piece that trains pairs, the target is scored as their reference.

        Raises:
            TrainingError: too many consecutive steps had a non-finite gradient, or memory ran out.
        """
        with explain_out_of_memory(self.config, self.device):
            while self.step < self.plan.end:
                if self.reference.is_due(self):
                    self.reference.measure(self, stream)
                for update, batches in stream(self):
                    moved_on, stopped = self._advance(update, batches, hooks)
                    if stopped:
                        return False
                    if moved_on or self.reference.is_due(self):
                        break
        return True

    def _advance(self, update: Update, batches: list[PackedExamples], hooks: Hooks) -> tuple[bool, bool]:
        """Runs one update, logs it and writes a due checkpoint; returns whether the piece ended early, and whether to stop."""
        before, self._launched = self._launched, self.train_step(update, batches, hooks.wants_stop())
        self.step, self.cursor = update.step + 1, update.end
        stopped = before is not None and self._settle(before, hooks)[1]
        due = self.step % self.config.checkpoint_every_steps == 0 or self.step == self.plan.end
        saves = due or stopped or hooks.wants_checkpoint()
        if self.overlaps and not saves:
            return False, False
        moved_on, also_stopped = self._settle(self._launched, hooks, validates=due)
        self._launched = None
        stopped |= also_stopped
        if saves or stopped:
            hooks.on_checkpoint(self)
        return moved_on, stopped and self.step < self.plan.end

    def train_step(self, update: Update, batches: Sequence[PackedExamples], wants_stop: bool = False) -> LaunchedStep:
        """Launches one update: all micro-batches, clipping, and an optimizer step, skipped if the gradient is not finite."""
        start = time.perf_counter()
        torch.manual_seed(hash((self.seed, update.step, self.rank)) % 2**63)
        rate = self._learning_rate(update.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = [getattr(update.weights, mode) for mode in MODES_OF_PARTS]
        shares = [weight / (n or 1.0) for weight, n in zip(weights, update.denominators, strict=True)]
        scale = on_device(torch.tensor(shares), self.device)
        sums = torch.zeros(2 * len(PARTS) + len(OF_PAIRS) + 1, device=self.device)
        ce_nats = []
        for each in batches:
            batch = each.tensors(self.device, self.reference.of(each))
            losses = self.module(batch, scale)
            # FSDP averages gradients over the workers; the denominators are already those of the whole batch.
            (losses.total * self.world_size).backward()
            for part, values in enumerate((losses.ce_nats, losses.kl_nats)):
                sums[part * len(PARTS) :].index_add_(0, batch.mode, values.float())
            if losses.pairs:
                nats, leads, _ = losses.pairs
                sums[2 * len(PARTS) : -1] += torch.stack([nats, leads, (leads > 0).to(nats)]).sum(1)
            ce_nats.append(losses.ce_nats)
        norm: Any = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        sums[-1] = float(wants_stop)
        if self.world_size > 1:
            dist.all_reduce(sums)
        self._apply(norm)
        numbers, done = _to_host(torch.cat([sums, norm.to(sums).reshape(1)]))
        return LaunchedStep(update, batches, ce_nats, numbers, done, rate, start)

    def _settle(self, launched: LaunchedStep, hooks: Hooks, validates: bool = False) -> tuple[bool, bool]:
        """Waits for an update and logs it; returns whether the schedule's piece ended early, and whether a worker wants to stop."""
        if launched.done:
            launched.done.synchronize()
        now = time.perf_counter()
        # If it was launched while the previous update ran, it started when that one was done.
        seconds = now - max(launched.start, self._last_done)
        self._last_done = now
        *sums, grad_norm = launched.numbers.tolist()
        finite = math.isfinite(grad_norm)
        self.skipped += not finite
        self.consecutive_skips = 0 if finite else self.consecutive_skips + 1
        metrics = self._metrics(launched.update, sums, launched.learning_rate, grad_norm, seconds)
        self._watch(metrics, finite, launched.batches, launched.ce_nats)
        moved_on = self.schedule.observe(launched.update.step, metrics.ce_inference_nats)
        record = metrics.known() | (self.validate() if validates else {})
        self.history.append(record)
        hooks.on_step(record)
        return moved_on, sums[-1] > 0

    @torch.no_grad()
    def validate(self) -> Record:
        """Returns the bits per byte of the validation rows, by mode: `sum(CE) / (ln 2 * bytes of the responses)`.

        The entry without a mode's name repeats the training mode's value, or the inference mode's if there is no other.
        """
        if len(self.plan.validation) == 0:
            return {}
        self.module.eval()
        sums = torch.zeros(2, len(MODES), dtype=torch.float64, device=self.device)
        for each in self.validation:
            batch = each.tensors(self.device)
            losses = self.module(batch, torch.ones(len(PARTS), device=self.device))
            sums[0].index_add_(0, batch.mode, losses.ce_nats.double())
            sizes = torch.from_numpy(each.response_bytes).to(self.device)
            sums[1].index_add_(0, torch.from_numpy(each.mode).to(self.device, torch.int64), sizes)
        self.module.train()
        self.module.reshard_gathered()
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

    def _apply(self, grad_norm: Tensor) -> None:
        step_if_finite(self.optimizer, grad_norm)

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
                "lower fuse.optimizer.learning_rate or check these rows"
            )

    def _metrics(self, update: Update, sums: list[float], rate: float, grad_norm: float, seconds: float) -> StepMetrics:
        nats: dict[str, float | None] = {}
        for index, name in enumerate(PARTS):
            count = update.num_tokens[index]
            for part, loss in enumerate(("ce", "kl")[: 1 + (name not in PAIR)]):
                nats[f"{loss}_{name}_nats"] = sums[part * len(PARTS) + index] / count if count else None
        if update.weights.on_policy:
            nats["weight_on_policy"] = update.weights.on_policy
        if pairs := update.denominators[PREFERRED]:
            nats |= {"pairs": pairs, "weight_preference": update.weights.preference}
            nats |= {name: value / pairs for name, value in zip(OF_PAIRS, sums[2 * len(PARTS) :], strict=False)}
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


def _to_host(tensor: Tensor) -> tuple[Tensor, Any]:
    """Starts copying numbers to the host; returns the copy, and the event that marks its completion (None for a CPU)."""
    if tensor.device.type != "cuda":
        return tensor, None
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return copy, done
