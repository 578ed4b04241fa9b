"""Records why parts of an optional stage failed, so that the report can show it."""

from collections.abc import Mapping

from profuser.run.fusion_run import FusionRun
from profuser.run.stages import REGISTRY

FAILURES = "failures.json"
"""File in a stage's folder: the last error of each part that failed, by name."""
FAILED_PARTS = "failed_parts"
"""Count of the report's manifest: parts whose failure it shows."""


def record_failures(run: FusionRun, stage: str, failures: Mapping[str, str]) -> None:
    """Stores the reasons why parts of a stage failed, in place of their earlier ones."""
    if failures:
        folder = run.folder / stage
        folder.write_json(FAILURES, (folder.read_json(FAILURES) if folder.exists(FAILURES) else {}) | dict(failures))


def read_failures(run: FusionRun) -> dict[str, str]:
    """Returns the parts whose last attempt failed and that are still unfinished, with the reasons."""
    out: dict[str, str] = {}
    for stage in (stage.name for stage in REGISTRY.values() if stage.optional):
        folder = run.folder / stage
        if folder.exists(FAILURES):
            stored = folder.read_json(FAILURES)
            unfinished = [a.stage for a in run.artifacts(stage) if a.manifest() is None]
            out |= {name: stored[name] for name in unfinished if name in stored}
    return out
