"""What one update of the target holds in a device's memory, by part and by moment."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Part = Literal["parameters", "gradients", "optimizer", "gathered", "activations", "loss", "backward"]
"""What memory is for. `parameters`, `gradients` and `optimizer`: this device's share, in float32 (buffers are with the first).
`gathered`: parameters that are whole for the moment, in the compute type, and the buffers they arrive in. `activations`: what the
forward pass made. `loss`: what the loss made, logits of a chunk and the output layer's gradient. `backward`: what the backward pass
made, gradients before they are shared out and activations computed again."""
Moment = Literal["forward", "loss", "backward", "step"]
"""Stretches of an update. The loss takes its own gradients, they are in `loss`; `step` is clipping and the optimizer."""
PARTS: tuple[Part, ...] = get_args(Part)
MOMENTS: tuple[Moment, ...] = get_args(Moment)
SHARDED: tuple[Part, ...] = ("parameters", "gradients", "optimizer")
"""Parts of which each device holds its share."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of each device in bytes: what its tensors hold at the fullest instant of each moment."""

    world_size: int
    """Devices."""
    micro_batch: tuple[int, int]
    """Sequences of the largest micro-batch, and tokens of each."""
    attention: str
    """The attention function, and why it was chosen."""
    moments: Mapping[Moment, Mapping[Part, int]]
    host: Mapping[Part, int]
    """What each worker keeps in the host's memory instead (`memory.cpu_offload`)."""

    @property
    def peak_moment(self) -> Moment:
        """The moment that takes the most."""
        return max(MOMENTS, key=self.total)

    @property
    def peak_bytes(self) -> int:
        """The most that the device holds at one time."""
        return self.total(self.peak_moment)

    def total(self, moment: Moment) -> int:
        """Bytes of all parts at the fullest instant of a moment."""
        return sum(self.moments[moment].values())

    def on(self, world_size: int, accumulates: bool) -> "MemoryPlan":
        """About the same on another number of devices, for micro-batches of the same shape.

        Args:
            world_size: devices.
            accumulates: whether a worker has several micro-batches, so that gradients are there from the start of one.
        """
        present: dict[Part, int] = {"gradients": self.moments["step"]["gradients"]} if accumulates else {}

        def shares(parts: Mapping[Part, int]) -> dict[Part, int]:
            return {p: n * self.world_size // world_size if p in SHARDED else n for p, n in parts.items()}

        moments = {moment: shares({**parts, **present}) for moment, parts in self.moments.items()}
        return replace(self, world_size=world_size, moments=moments, host=shares(self.host))
