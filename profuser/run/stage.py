"""The record of a stage: all that the pipeline, the plan and the report need to know of it.

A stage is added by a record in `stages.py` and a function of its name in `ray_jobs/stages/NAME.py`, which makes its artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from profuser.artifacts.artifact import Artifact
from profuser.recipe.resources import PoolConfig

if TYPE_CHECKING:
    from profuser.run.fusion_run import FusionRun


@dataclass(frozen=True)
class Part:
    """A part of a stage: one call of its function."""

    name: str
    """The stage and part, e.g. `collect/llama`."""
    make: Callable[[], Sequence[Artifact]]
    """Returns what it makes; that of its own name first. Reads the models that decide their fingerprints."""
    arguments: tuple[Any, ...] = ()
    """Of the stage's function, after the run."""
    pool: PoolConfig | None = None
    """Its actors; None where it has none, or where they name no accelerator."""

    @property
    def artifact(self) -> Artifact:
        """The artifact of the part's name."""
        return self.make()[0]


@dataclass(frozen=True)
class CorpusSize:
    """Size of a corpus."""

    num_rows: int
    prompt_tokens: float
    """Mean per row, estimated."""
    response_tokens: float
    """Mean per row, estimated."""
    exact: bool
    """Whether the whole corpus was read."""


@dataclass(frozen=True)
class PlanLine:
    """What one part of a stage will take, estimated."""

    rows: int
    tokens: float
    disk_bytes: float
    devices: str


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline."""

    name: str
    parts: Callable[[FusionRun], Sequence[Part]]
    """Its parts, in order; none where the recipe does not ask for the stage."""
    plan: Callable[[FusionRun, CorpusSize], Iterable[PlanLine]]
    """A line of the plan for each part; none for a stage that costs nothing worth planning."""
    part_option: str | None = None
    """What a part is (`source`, `reward`, `model`), and so the option of `python -m ray_jobs STAGE` that chooses one."""
    plural: str = ""
    """The same in the plural, for the report."""
    concurrency: Literal["one", "sources", "rewards", "models"] = "one"
    """How many of its parts run concurrently: one, or as many of these as the cluster has room for."""
    report: Callable[[Mapping[str, Mapping[str, float]]], list[str]] | None = None
    """Phrases for the report, from the counts of every artifact by name; by default those of `profuser.report`."""
    results: Callable[[str, Mapping[str, float]], dict[str, float]] = lambda name, metrics: {}
    """Metrics for the run as a whole in MLflow, from a part's name and its metrics."""
