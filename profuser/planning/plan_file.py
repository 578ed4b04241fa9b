"""A plan that was made from a probe: kept in the run's folder, and held against what the run took."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profuser.artifacts.artifact import Manifest
from profuser.errors import ArtifactError
from profuser.planning.estimates import Extrapolation
from profuser.storage.folder import Folder

PLAN = "plan.json"


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take."""

    stage: str
    fingerprint: str
    """Of the artifact that was planned: another one is not measured by this plan."""
    quantities: dict[str, Extrapolation]
    """`prompt_tokens`, `training_tokens`, `inference_tokens`, `seconds` (wall time with all actors), `device_hours`, `disk_bytes`,
    `money`; those that are known of the stage."""


@dataclass(frozen=True)
class ProbedPlan:
    """What the sources' passes over the corpus will take, as `plan.json` keeps it."""

    num_probed: int
    """N."""
    num_rows: int
    """R."""
    seed: int
    """Of the draw."""
    currency: str
    stages: tuple[StagePlan, ...]
    total: dict[str, Extrapolation]
    """Over all stages; wall time apart, since they may run side by side."""
    disk_bytes: dict[str, Extrapolation]
    """Of all stages, were signals `eager` or `lazy`."""
    notes: tuple[str, ...] = ()
    """What to know of these numbers, a sentence each."""


@dataclass(frozen=True)
class PlanError:
    """One quantity of a stage, planned and measured."""

    stage: str
    quantity: str
    planned: Extrapolation
    measured: float

    @property
    def error(self) -> float:
        """How far the plan was above what came, as a share of that; NaN where nothing came."""
        return self.planned.value / self.measured - 1 if self.measured else math.nan


def measure(manifest: Manifest, disk_bytes: int, price: float | None) -> dict[str, float]:
    """What a finished stage took, in a plan's quantities.

    Args:
        manifest: of the stage.
        disk_bytes: of its shards' files.
        price: of a device-hour; without it there is no sum of money.
    """
    hours = manifest.device_seconds / 3600
    found = manifest.counts | {"seconds": manifest.seconds, "device_hours": hours, "disk_bytes": float(disk_bytes)}
    return found if price is None else found | {"money": price * hours}


def compare(plan: ProbedPlan, measured: Mapping[str, Mapping[str, float]]) -> list[PlanError]:
    """What was planned against what came.

    Args:
        plan: of the run.
        measured: by stage and quantity; a quantity that is not there is not compared.
    """
    return [
        PlanError(stage.stage, name, planned, measured[stage.stage][name])
        for stage in plan.stages
        for name, planned in stage.quantities.items()
        if name in measured.get(stage.stage, {})
    ]


def write_plan(folder: Folder, plan: ProbedPlan) -> None:
    """Keeps a plan in a run's folder, in the place of an earlier one."""
    folder.write_json(PLAN, asdict(plan))


def read_plan(folder: Folder) -> ProbedPlan | None:
    """The plan in a run's folder, or None where there is none; ArtifactError where it is not one of this version."""
    if not folder.exists(PLAN):
        return None
    content: Any = folder.read_json(PLAN)
    try:
        return TypeAdapter(ProbedPlan).validate_python(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(f"{folder.path(PLAN)}: not a plan of this version ({where}); make it anew") from None
