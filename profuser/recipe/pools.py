"""The section of a recipe that says over how many actors a model or verifier is spread."""

from pydantic import model_validator

from profuser.config import Config, execution_field


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
