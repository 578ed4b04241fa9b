"""Compares the results of two runs of one recipe, row by row and weight by weight."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from safetensors.torch import load

from profuser.artifacts.artifact import Artifact
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import STAGES

FLOATS = ("logprobs", "nats", "advantages", "score", "scores", "metrics")
CANDIDATES = "topk_ids"
"""Columns of candidates; those of nearly equal probability may swap, so they are not compared."""


@dataclass(frozen=True)
class ArtifactDifference:
    """Differences between two artifacts."""

    name: str
    num_rows: int
    """Number of rows of the first."""
    num_missing: int
    """Rows that are missing from the second, extra in it, or duplicated in it."""
    num_unlike: int
    """Rows whose texts, choices or other exact columns differ."""
    largest: float
    """Largest difference of numbers in matching rows (log-probabilities, advantages, scores), or of a model's weights."""


def differences(first: FusionRun, second: FusionRun) -> Iterator[ArtifactDifference]:
    """Yields the difference of every artifact that has rows, then of the fused model.

    Raises:
        FileNotFoundError: one of them is not finished.
    """
    for stage in STAGES:
        for mine, other in zip(first.artifacts(stage), second.artifacts(stage), strict=True):
            if mine.schema.names:
                yield table_difference(mine, other)
    yield _model_difference(first, second)


def table_difference(first: Artifact, second: Artifact) -> ArtifactDifference:
    """Compares two artifacts with rows."""
    mine, other = _rows(first), _rows(second)
    shared = mine.keys() & other.keys()
    missing = len(mine.keys() ^ other.keys()) + sum(len(rows) != 1 for rows in other.values())
    unlike, largest = 0, 0.0
    for key in shared:
        gap = _gap(mine[key][0], other[key][0])
        unlike += gap is None
        largest = max(largest, gap or 0.0)
    return ArtifactDifference(first.stage, len(mine), missing, unlike, largest)


def _rows(artifact: Artifact) -> dict[tuple, list[dict]]:
    """Returns the rows by id and the other columns that identify a row."""
    out: dict[tuple, list[dict]] = {}
    for row in (row for table in artifact.tables() for row in table.to_pylist()):
        key = tuple(row.get(name) for name in ("row_id", "mode", "model", "item_id", "task", "file", "line"))
        out.setdefault(key, []).append(row)
    return out


def _gap(mine: dict, other: dict) -> float | None:
    """Returns the largest difference of two rows' numbers; None where an exact column differs."""
    largest = 0.0
    for name, value in mine.items():
        if name.endswith(CANDIDATES):
            continue
        if name.endswith(FLOATS) and value is not None and other[name] is not None:
            pair = np.atleast_1d(np.array(value, float)), np.atleast_1d(np.array(other[name], float))
            if pair[0].shape != pair[1].shape or (np.isnan(pair[0]) != np.isnan(pair[1])).any():
                return None
            unequal = pair[0] != pair[1]  # equal values may be infinite
            largest = max(largest, float(np.nanmax(np.abs(pair[0][unequal] - pair[1][unequal]), initial=0.0)))
        elif value != other[name]:
            return None
    return largest


def _model_difference(first: FusionRun, second: FusionRun) -> ArtifactDifference:
    mine, other = (load((run.fuse().folder / "model").read_bytes("model.safetensors")) for run in (first, second))
    shared = [name for name in mine.keys() & other.keys() if mine[name].shape == other[name].shape]
    gaps = [float((mine[name].float() - other[name].float()).abs().max()) for name in shared]
    return ArtifactDifference(
        "fuse/model", len(mine), len(mine.keys() ^ other.keys()), len(mine) - len(shared), max(gaps)
    )
