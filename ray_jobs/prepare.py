"""Stage `prepare`: reads the corpus, refuses what cannot be used, and writes train and held-out shards."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.artifacts import Artifact, Manifest
from profuser.corpus import CorpusRow, QuarantinedRow, Summary, check_quarantine, prepare_rows, read_corpus, split_heldout
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from profuser.run import FusionRun
from profuser.schemas import CORPUS, QUARANTINE
from ray_jobs.cluster import own_cause
from ray_jobs.shards import finish


def prepare(run: FusionRun) -> Manifest:
    """Runs the stage, on the driver's machine: a corpus given by path lies there."""
    start = time.monotonic()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=here)(_prepare)
    artifacts = (run.corpus(), run.heldout(), run.quarantine())
    try:
        counts = ray.get(task.remote(run.recipe, run.corpus_path, run.heldout_path, *artifacts))
    except RayTaskError as error:
        raise own_cause(error) from None
    seconds = time.monotonic() - start
    for artifact, count in zip(artifacts[1:], counts[1:], strict=True):
        finish(artifact, [count], seconds)
    return finish(artifacts[0], [counts[0]], seconds)
