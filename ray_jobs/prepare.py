"""Stage `prepare`: reads the corpus, refuses what cannot be used, and writes train and held-out shards."""

import time
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.artifacts import Artifact, Manifest
from profuser.corpus import (
    CorpusRow,
    QuarantinedRow,
    Summary,
    check_quarantine,
    prepare_rows,
    read_corpus,
    split_heldout,
)
from profuser.recipe.models import CorpusConfig, Recipe
from profuser.run import FusionRun
from ray_jobs.cluster import own_cause
from ray_jobs.shards import finish


def prepare(run: FusionRun) -> Manifest:
    """Runs the stage, on the driver's machine: a corpus given by path lies there."""
    start = time.monotonic()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0)(_prepare).options(scheduling_strategy=here)
    artifacts = (run.corpus(), run.heldout(), run.quarantine())
    try:
        counts = ray.get(task.remote(run.recipe, run.corpus_path, run.heldout_path, *artifacts))
    except RayTaskError as error:
        raise own_cause(error) from None
    seconds = time.monotonic() - start
    # The whole time is the corpus's: it is measured once.
    for artifact, count in zip(artifacts[1:], counts[1:], strict=True):
        finish(artifact, [count], 0.0)
    return finish(artifacts[0], [counts[0]], seconds)


def _prepare(
    recipe: Recipe, path: str, heldout_path: str | None, corpus: Artifact, heldout: Artifact, quarantine: Artifact
) -> list[dict[str, float]]:
    """Reads everything, checks it, and writes the three artifacts; nothing is written where the corpus is refused."""
    config = recipe.corpus
    rows, refused = _read(path, config, config.max_rows)
    if heldout_path is None:
        rows, held = split_heldout(rows, config.heldout_rows, recipe.seed)
    else:
        held, more = _read(heldout_path, config, config.heldout_rows or None)
        known = {row.row_id for row in rows}
        both = [row for row in held if row.row_id in known]
        more += [
            QuarantinedRow(row.source_file, row.source_line, "held-out row is in the corpus too", "") for row in both
        ]
        held, refused = [row for row in held if row.row_id not in known], refused + more
    _write(corpus, [asdict(row) for row in rows], config.rows_per_shard)
    _write(heldout, [asdict(row) for row in held], config.rows_per_shard)
    _write(quarantine, [asdict(row) for row in refused], config.rows_per_shard)
    return [{"rows": len(rows), "quarantined": len(refused)}, {"rows": len(held)}, {"rows": len(refused)}]


def _read(path: str, config: CorpusConfig, limit: int | None) -> tuple[list[CorpusRow], list[QuarantinedRow]]:
    """Usable rows, at most so many, and the refused ones met on the way."""
    summary, rows, refused = Summary(), [], []
    for row in prepare_rows(read_corpus(path), config.format, config.category_field, config.max_row_bytes):
        summary.add(row)
        if isinstance(row, QuarantinedRow):
            refused.append(row)
            continue
        rows.append(row)
        if len(rows) == limit:
            break
    check_quarantine(path, summary, config.max_quarantined_fraction)
    return rows, refused


def _write(artifact: Artifact, records: list[dict[str, Any]], rows_per_shard: int) -> None:
    for index, start in enumerate(range(0, len(records), rows_per_shard)):
        part = [_plain(record) for record in records[start : start + rows_per_shard]]
        table = pa.Table.from_pylist(part, schema=artifact.schema)
        artifact.write_shard(index, table, {"rows": len(part)})


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    if "messages" not in record:
        return record
    return record | {"messages": [{"role": role, "content": content} for role, content in record["messages"]]}
