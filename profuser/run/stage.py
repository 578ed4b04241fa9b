"""The record of a stage, read by the pipeline, the plan and the report.

To add a stage, add a record to `stages.py` and, in `ray_jobs/stages/NAME.py`, a function of the same name that makes its artifacts.
If other stages' functions make them, as for `rounds`, its parts name these (`Part.job`).
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
    """One call of a stage's function."""

    name: str
    """Stage and part, e.g. `collect/llama`."""
    make: Callable[[], Sequence[Artifact]]
    """Returns the part's artifacts, the one of the same name first. Reads the models that determine their fingerprints."""
    arguments: tuple[Any, ...] = ()
    """Arguments of the stage's function, after the run."""
    pool: PoolConfig | None = None
    """Actor pool; None if there is none, or if its actors request no accelerator."""
    group: str | None = None
    """Parts of one group run in turn and share the model that the first of them loads. If one fails, the others still run."""
    job: str | None = None
    """Stage whose function makes it, where that is not its own."""

    @property
    def artifact(self) -> Artifact:
        """The artifact of the same name."""
        return self.make()[0]


@dataclass(frozen=True)
class CorpusSize:
    """Size of a corpus."""

    num_rows: int
    prompt_tokens: float
    """Estimated mean per row."""
    response_tokens: float
    """Estimated mean per row."""
    exact: bool
    """Whether the whole corpus was read."""


@dataclass(frozen=True)
class PlanLine:
    """Estimated cost of one part of a stage."""

    rows: int
    tokens: float
    disk_bytes: float
    devices: str
    money: float | None = None
    """Price of the tokens of an endpoint, in `plan.currency`; None without one."""


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline."""

    name: str
    purpose: str
    """What the stage does, for `python -m ray_jobs --help`, which shows the first sentence."""
    parts: Callable[[FusionRun], Sequence[Part]]
    """Parts, in order; empty if the recipe does not request the stage."""
    plan: Callable[[FusionRun, CorpusSize], Iterable[PlanLine]]
    """One plan line per part; empty for a stage whose cost is negligible."""
    rewritten: bool = False
    """Whether its artifact only shows results: it is written again, not refused, if it was made from other ones."""
    optional: bool = False
    """Whether later stages run although some of its parts failed. The errors are raised at the end, and the report shows them."""
    part_option: str | None = None
    """Kind of a part (`source`, `reward`, `model`), and the option of `python -m ray_jobs STAGE` that selects one."""
    plural: str = ""
    """Plural of the part's kind, for the report."""
    concurrency: Literal["one", "sources", "rewards", "models"] = "one"
    """Number of parts that run concurrently: one, or as many of these as fit in the cluster."""
    report: Callable[[Mapping[str, Mapping[str, float]]], list[str]] | None = None
    """Phrases for the report, from every artifact's counts by name; by default from `COUNTED` of the report's pipeline table."""
    results: Callable[[str, Mapping[str, float]], dict[str, float]] = lambda name, metrics: {}
    """Run-level metrics for MLflow, from a part's name and its metrics."""
