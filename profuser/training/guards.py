"""Guards of an update: non-finite values, loss spikes and exhausted memory, with the rows concerned."""

import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.training.step import PackedExamples

NUM_ROWS_NAMED = 5
WINDOW = 100
"""Number of recent losses over which the median is taken."""
MIN_SEEN = 20
"""Number of losses from which the running median is used."""


class SpikeWatch:
    """Detects losses that are more than a given number of median absolute deviations above the running median."""

    def __init__(self, deviations: float):
        self.deviations = deviations
        self.seen: dict[str, deque[float]] = {}

    def observe(self, losses: Mapping[str, float | None]) -> list[str]:
        """Returns the names of the losses that spike in this update."""
        return [name for name, value in losses.items() if value is not None and self._spikes(name, value)]

    def state_dict(self) -> dict[str, list[float]]:
        """Returns the recent losses, for a checkpoint."""
        return {name: list(values) for name, values in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores the state of `state_dict`."""
        self.seen = {name: deque(values, WINDOW) for name, values in state.items()}

    def _spikes(self, name: str, value: float) -> bool:
        before = self.seen.setdefault(name, deque(maxlen=WINDOW))
        spikes = not np.isfinite(value)
        if len(before) >= MIN_SEEN and not spikes:
            middle = statistics.median(before)
            # With a nearly constant loss any step would be a spike, so the deviation is at least a hundredth of it.
            usual = max(statistics.median(abs(each - middle) for each in before), 0.01 * abs(middle))
            spikes = value > middle + self.deviations * usual
        if np.isfinite(value):
            before.append(value)
        return bool(spikes)


def worst_rows(batches: Sequence[PackedExamples], ce_nats: Sequence[torch.Tensor]) -> list[tuple[float, str]]:
    """Returns the rows with the highest mean cross-entropy of an update, over all workers, non-finite ones first.

    Args:
        batches: this worker's micro-batches.
        ce_nats: cross-entropy per response token of each micro-batch.
    """
    own: list[tuple[float, str]] = []
    for batch, losses in zip(batches, ce_nats, strict=True):
        sums = np.bincount(batch.example, weights=losses.float().cpu().numpy(), minlength=len(batch.row_ids))
        counts = np.maximum(np.bincount(batch.example, minlength=len(batch.row_ids)), 1)
        own += [(float(mean), row) for mean, row in zip(sums / counts, batch.row_ids, strict=True)]
    everyone = [own]
    if dist.is_initialized():
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, own)
    found = [pair for part in everyone for pair in part]
    return sorted(found, key=lambda pair: -pair[0] if np.isfinite(pair[0]) else -np.inf)[:NUM_ROWS_NAMED]


@contextmanager
def explain_out_of_memory(config: FuseConfig, device: torch.device) -> Iterator[None]:
    """Turns an out-of-memory error into a TrainingError that names the settings to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch reports exhausted host memory as a plain RuntimeError.
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
        if not known:
            raise
        raise TrainingError(f"fuse: {device} ran out of memory; {remedy(config)}") from error


def remedy(config: FuseConfig) -> str:
    """Returns the settings to change when memory runs out, the cheapest first, with their present values."""
    memory = config.memory
    ways = [
        f"lower fuse.micro_batch_tokens ({config.micro_batch_tokens}) or fuse.loss_chunk_tokens ({config.loss_chunk_tokens})"
    ]
    if memory.activation_checkpointing != "full":
        ways.append(f"set fuse.memory.activation_checkpointing: full ({memory.activation_checkpointing})")
    ways.append(f"raise fuse.workers.num_workers ({config.workers.num_workers})")
    if not memory.cpu_offload:
        ways.append("set fuse.memory.cpu_offload: true")
    if config.lora is None:
        ways.append("train adapters only (fuse.lora)")
    return "; or ".join(ways) + "; profuser plan prints the memory of each part"
