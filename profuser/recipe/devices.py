"""The sections of a recipe that say on what the target is trained: workers, and what they hold in memory."""

from typing import Literal

from pydantic import model_validator

from profuser.config import Config, execution_field

Attention = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "eager"]


class WorkersConfig(Config):
    """Ray Train's workers: one per device."""

    num_workers: int = execution_field(2, gt=0)
    """Workers over which parameters are sharded."""
    min_workers: int | None = execution_field(None, gt=0)
    """Begin with as few where the cluster has no room for all, and change over when it has; by default all or none."""
    num_cpus: float = execution_field(1.0, gt=0)
    """CPUs a worker reserves."""
    use_gpu: bool | None = execution_field(None)
    """One GPU per worker; by default wherever the cluster has as many GPUs as workers (`min_workers`, where it is set)."""
    max_failures: int = execution_field(3, ge=0)
    """Restarts from the last checkpoint before the stage fails."""

    @model_validator(mode="after")
    def _range(self) -> "WorkersConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers: {self.min_workers} are more than num_workers: {self.num_workers}")
        return self


class MemoryConfig(Config):
    """Memory against time: what a worker keeps, recomputes, gathers again or moves away."""

    activation_checkpointing: Literal["none", "selective", "full"] = execution_field("none")
    """Recompute nothing, all but attention and every second matrix product, or each whole block in the backward pass."""
    reshard_after_forward: bool = execution_field(True)
    """Free a block's gathered parameters after its forward pass, and gather them again for the backward pass."""
    cpu_offload: bool = execution_field(False)
    """Keep sharded parameters, gradients and optimizer in the host's memory."""
    compile: bool = execution_field(False)
    """`torch.compile` each block: faster steps for some minutes at the start."""
