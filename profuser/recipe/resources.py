"""The sections of a recipe about resources: actors of a pool, workers of training and their memory, and what devices cost."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from profuser.config import Config, execution_field

Attention = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "eager"]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PoolConfig(Config):
    """An autoscaling pool of actors and what each one takes."""

    min_actors: int = execution_field(1, gt=0)
    """Actors that are kept."""
    max_actors: int = execution_field(1, gt=0)
    """Actors at most; on a cluster all are asked for at once, so that their nodes come."""
    num_cpus: float = execution_field(1.0, ge=0)
    """CPUs an actor reserves."""
    num_gpus: float | None = execution_field(None, ge=0)
    """GPUs an actor reserves, or a share of one; by default what its model needs where the cluster has GPUs, and none elsewhere."""
    accelerator_type: str | None = execution_field(None)
    """Only nodes with this accelerator, by Ray's name for it (`H100`, `A10G` ...)."""

    @model_validator(mode="after")
    def _ordered(self) -> "PoolConfig":
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is more than max_actors={self.max_actors}")
        return self


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


class AcceleratorPrice(Config):
    """What one kind of accelerator costs."""

    accelerator: str
    """Its name as in `pool.accelerator_type` (`H100`, `A10G` ...)."""
    price_per_device_hour: Price
    """Of one of them, in `plan.currency`."""


class PlanConfig(Config):
    """What `profuser plan --probe` reckons with."""

    price_per_device_hour: Price | None = execution_field(None)
    """Of one GPU for an hour, or of one CPU where actors reserve no GPU; without it the plan names no sum of money."""
    currency: str = execution_field("USD", min_length=1, max_length=12)
    """Of all prices."""
    accelerators: tuple[AcceleratorPrice, ...] = execution_field(())
    """Prices of their own for pools that name an `accelerator_type`."""

    @model_validator(mode="after")
    def _one_price_each(self) -> "PlanConfig":
        names = [price.accelerator for price in self.accelerators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"accelerators: {twice[0]!r} has two prices")
        return self

    def price(self, pool: PoolConfig) -> float | None:
        """What a device of this pool costs in an hour; None where the recipe does not say."""
        own = (p.price_per_device_hour for p in self.accelerators if p.accelerator == pool.accelerator_type)
        return next(own, self.price_per_device_hour)
