"""Device memory of one update of the target, by part and by moment."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Part = Literal["parameters", "gradients", "optimizer", "gathered", "activations", "loss", "backward"]
"""Uses of memory. `parameters`, `gradients` and `optimizer`: this device's share, in float32 (buffers count as parameters).
`gathered`: temporarily unsharded parameters in the compute type, and their receive buffers. `activations`: output of the forward
pass. `loss`: memory of the loss, logits of a chunk and the output layer's gradient. `backward`: memory of the backward pass,
gradients before they are reduced and recomputed activations."""
Moment = Literal["forward", "loss", "backward", "step"]
"""Phases of an update. The loss computes its own gradients, which count as `loss`; `step` is clipping and the optimizer."""
PARTS: tuple[Part, ...] = get_args(Part)
MOMENTS: tuple[Moment, ...] = get_args(Moment)
SHARDED: tuple[Part, ...] = ("parameters", "gradients", "optimizer")
"""Parts that are sharded over devices."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of each device in bytes: what its tensors hold at the peak of each moment."""

    world_size: int
    """Number of devices."""
    micro_batch: tuple[int, int]
    """Sequences of the largest micro-batch, and tokens of each."""
    attention: str
    """The attention function and the reason for its choice."""
    moments: Mapping[Moment, Mapping[Part, int]]
    host: Mapping[Part, int]
    """Host memory of each worker that replaces device memory (`memory.cpu_offload`)."""

    @property
    def peak_moment(self) -> Moment:
        """The moment with the highest total."""
        return max(MOMENTS, key=self.total)

    @property
    def peak_bytes(self) -> int:
        """Bytes that the device holds at the peak."""
        return self.total(self.peak_moment)

    def total(self, moment: Moment) -> int:
        """Returns the bytes of all parts at the peak of a moment."""
        return sum(self.moments[moment].values())

    def on(self, world_size: int, accumulates: bool) -> "MemoryPlan":
        """Returns an approximate plan for another number of devices, with micro-batches of the same shape.

        Args:
            world_size: number of devices.
            accumulates: whether a worker has several micro-batches, so that gradients exist when one starts.
        """
        present: dict[Part, int] = {"gradients": self.moments["step"]["gradients"]} if accumulates else {}

        def shares(parts: Mapping[Part, int]) -> dict[Part, int]:
            return {p: n * self.world_size // world_size if p in SHARDED else n for p, n in parts.items()}

        moments = {moment: shares({**parts, **present}) for moment, parts in self.moments.items()}
        return replace(self, world_size=world_size, moments=moments, host=shares(self.host))
