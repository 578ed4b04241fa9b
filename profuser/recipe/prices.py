"""The section of a recipe that says what devices cost."""

from typing import Annotated

from pydantic import Field, model_validator

from profuser.config import Config, execution_field
from profuser.recipe.pools import PoolConfig

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
