"""The settings common to all rewards, and to all verifiers."""

from pydantic import Field, model_validator

from profuser.config import Config, Name, execution_field, later_field
from profuser.recipe.resources import PoolConfig


class JudgeBase(Config):
    """Settings common to all kinds of rewards."""

    kind: str
    name: Name
    """Name of this reward in artifacts, tables and plots."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of its vote; with 0 it is scored and reported, but decides nothing. Changing it reruns no model."""
    categories: tuple[str, ...] | None = later_field(None, min_length=1)
    """Categories (`corpus.category_field`) whose rows it judges; by default all rows. On other rows it has no vote."""
    except_categories: tuple[str, ...] | None = later_field(None, min_length=1)
    """Categories whose rows it does not judge; instead of `categories`. It judges rows without a category."""
    pool: PoolConfig = execution_field(PoolConfig())

    @property
    def num_devices(self) -> int:
        """GPUs that one actor needs for a model; 0 for a verifier, which runs none."""
        return 0

    @property
    def rejects_up_to(self) -> float | None:
        """Reward up to which an answer is rejected; None if it rejects none."""
        return None

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Fields of the corpus's records that it needs, by their keys in `corpus.fields`."""
        return ()

    def judges(self, category: str | None) -> bool:
        """Returns whether it judges rows of a category."""
        if self.categories is not None:
            return category in self.categories
        return self.except_categories is None or category not in self.except_categories

    @model_validator(mode="after")
    def _one_choice_of_categories(self) -> "JudgeBase":
        if self.categories and self.except_categories:
            raise ValueError(f"{self.name}: categories and except_categories exclude each other; remove one")
        return self


class VerifierBase(JudgeBase):
    """Settings common to all verifiers."""

    accept_above: float | None = later_field(0.0, allow_inf_nan=False)
    """Reward above which it accepts an answer. An answer that every verifier of its row rejects does not teach, whatever reward
    models say; with null it rejects none. A verifier of weight 0 rejects nothing. Changing it reruns no model."""

    @property
    def rejects_up_to(self) -> float | None:
        """Reward up to which an answer is rejected; None if it rejects none."""
        return self.accept_above
