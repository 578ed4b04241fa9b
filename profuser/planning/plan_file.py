"""A plan made from a probe: stored in the run's folder, and compared with what the run took."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profuser.artifacts.artifact import Manifest
from profuser.errors import ArtifactError
from profuser.planning.estimates import Extrapolation
from profuser.recipe.endpoints import TokenCost
from profuser.storage.folder import Folder

PLAN = "plan.json"


@dataclass(frozen=True)
class StagePlan:
    """Estimated cost of one stage."""

    stage: str
    fingerprint: str
    """Fingerprint of the planned artifact; the plan does not apply to any other."""
    quantities: dict[str, Extrapolation]
    """`prompt_tokens`, `training_tokens`, `inference_tokens`, `seconds` (wall time with all actors), `device_hours`, `disk_bytes`,
    `money`; only those known for the stage."""


@dataclass(frozen=True)
class ProbedPlan:
    """Estimated cost of the sources' passes over the corpus, as stored in `plan.json`."""

    num_probed: int
    """N."""
    num_rows: int
    """R."""
    seed: int
    """Seed of the draw."""
    currency: str
    stages: tuple[StagePlan, ...]
    total: dict[str, Extrapolation]
    """Totals over all stages, without wall time, since stages may run concurrently."""
    disk_bytes: dict[str, Extrapolation]
    """Disk use of all stages with `eager` and with `lazy` signals."""
    notes: tuple[str, ...] = ()
    """Caveats about these numbers, one sentence each."""


@dataclass(frozen=True)
class PlanError:
    """One quantity of a stage, planned and measured."""

    stage: str
    quantity: str
    planned: Extrapolation
    measured: float

    @property
    def error(self) -> float:
        """Relative error of the plan, `planned / measured - 1`; NaN if the measured value is 0."""
        return self.planned.value / self.measured - 1 if self.measured else math.nan


def measure(
    manifest: Manifest, disk_bytes: int, price: float | None, token_cost: TokenCost | None = None
) -> dict[str, float]:
    """Returns what a finished stage took, in a plan's quantities.

    Args:
        manifest: the stage's manifest.
        disk_bytes: size of its shard files.
        price: price of a device-hour.
        token_cost: price of an endpoint's tokens. Without either price, `money` is omitted.
    """
    hours = manifest.device_seconds / 3600
    found = manifest.counts | {"seconds": manifest.seconds, "device_hours": hours, "disk_bytes": float(disk_bytes)}
    if price is None and token_cost is None:
        return found
    return found | {"money": (price or 0.0) * hours + (token_money(manifest.counts, token_cost) or 0.0)}


def token_money(counts: Mapping[str, float], token_cost: TokenCost | None) -> float | None:
    """Returns the price of the tokens that a stage's server counted; None without a price."""
    return token_cost and token_cost.money(counts.get("input_tokens", 0), counts.get("output_tokens", 0))


def compare(plan: ProbedPlan, measured: Mapping[str, Mapping[str, float]]) -> list[PlanError]:
    """Compares planned with measured quantities.

    Args:
        plan: the run's plan.
        measured: values by stage and quantity; missing ones are skipped.
    """
    return [
        PlanError(stage.stage, name, planned, measured[stage.stage][name])
        for stage in plan.stages
        for name, planned in stage.quantities.items()
        if name in measured.get(stage.stage, {})
    ]


def write_plan(folder: Folder, plan: ProbedPlan) -> None:
    """Writes a plan to a run's folder, replacing an earlier one."""
    folder.write_json(PLAN, asdict(plan))


def read_plan(folder: Folder) -> ProbedPlan | None:
    """Returns the plan in a run's folder, or None if there is none; raises ArtifactError if its format is another version's."""
    if not folder.exists(PLAN):
        return None
    content: Any = folder.read_json(PLAN)
    try:
        return TypeAdapter(ProbedPlan).validate_python(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(f"{folder.path(PLAN)}: not a plan of this version ({where}); make a new plan") from None
