"""The recipe sections of resources: actor pools, training workers and their memory, and device prices."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from profuser.config import Config, execution_field

Attention = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "eager"]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PoolConfig(Config):
    """An autoscaling pool of actors and the resources of each actor."""

    min_actors: int = execution_field(1, gt=0)
    """Number of actors kept."""
    max_actors: int = execution_field(1, gt=0)
    """Largest number of actors; on a cluster all are requested at once, so that their nodes are started."""
    num_cpus: float | None = execution_field(None, ge=0)
    """CPUs that an actor reserves. By default 1; for an engine without a GPU, an equal share of the CPUs of its node that were free
    when the run began."""
    num_gpus: float | None = execution_field(None, ge=0)
    """GPUs that an actor reserves, or a share of one; by default what its model needs if the cluster has GPUs, else none."""
    accelerator_type: str | None = execution_field(None)
    """Accelerator of the nodes to use, by Ray's name (`H100`, `A10G` ...)."""

    @model_validator(mode="after")
    def _ordered(self) -> "PoolConfig":
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is more than max_actors={self.max_actors}")
        return self


class WorkersConfig(Config):
    """Ray Train's workers: one per device."""

    num_workers: int = execution_field(2, gt=0)
    """Number of workers over which parameters are sharded."""
    min_workers: int | None = execution_field(None, gt=0)
    """Number of workers to start with if the cluster has no room for all, switching to all when it has. By default all or none."""
    num_cpus: float = execution_field(1.0, gt=0)
    """CPUs that a worker reserves."""
    use_gpu: bool | None = execution_field(None)
    """Whether each worker gets a GPU; by default if the cluster has as many GPUs as workers (`min_workers`, if set)."""
    max_failures: int = execution_field(3, ge=0)
    """Number of restarts from the last checkpoint before the stage fails."""

    @model_validator(mode="after")
    def _range(self) -> "WorkersConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self


class MemoryConfig(Config):
    """Trade-offs of memory against time in a training worker."""

    activation_checkpointing: Literal["none", "selective", "full"] = execution_field("none")
    """Recomputation in the backward pass: nothing, all but attention and every second matrix product, or each whole block."""
    reshard_after_forward: bool = execution_field(True)
    """Whether a block's gathered parameters are freed after its forward pass, and gathered again for the backward pass."""
    cpu_offload: bool = execution_field(False)
    """Whether sharded parameters, gradients and optimizer states are kept in the host's memory."""
    compile: bool = execution_field(False)
    """Whether each block is compiled by `torch.compile`: faster steps, for some minutes of compilation at the start."""


class AcceleratorPrice(Config):
    """Price of one kind of accelerator."""

    accelerator: str
    """Name as in `pool.accelerator_type` (`H100`, `A10G` ...)."""
    price_per_device_hour: Price
    """Price of one accelerator for an hour, in `plan.currency`."""


class PlanConfig(Config):
    """Prices for `profuser plan --probe`."""

    price_per_device_hour: Price | None = execution_field(None)
    """Price of one GPU for an hour, or of one CPU if actors reserve no GPU; without it the plan gives no cost."""
    currency: str = execution_field("USD", min_length=1, max_length=12)
    """Currency of all prices."""
    accelerators: tuple[AcceleratorPrice, ...] = execution_field(())
    """Separate prices for pools that name an `accelerator_type`."""

    @model_validator(mode="after")
    def _one_price_each(self) -> "PlanConfig":
        names = [price.accelerator for price in self.accelerators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"accelerators: {twice[0]!r} has two prices")
        return self

    def price(self, pool: PoolConfig) -> float | None:
        """Returns the price of a device of this pool for an hour; None if the recipe does not set one."""
        own = (p.price_per_device_hour for p in self.accelerators if p.accelerator == pool.accelerator_type)
        return next(own, self.price_per_device_hour)
