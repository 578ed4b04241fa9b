"""Stage `prepare`: reads the corpus, quarantines unusable rows, and writes train and held-out shards."""

import time

import ray
from ray.exceptions import RayTaskError

from profuser.artifacts.artifact import Manifest
from profuser.corpus import unused_line
from profuser.corpus.stage import write_corpus
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import pin_to_driver_node, unwrap_error
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import finish
from ray_jobs.runtime.stage_metrics import count_rows


def prepare(run: FusionRun) -> Manifest:
    """Reads the corpus and writes the train, held-out and quarantine artifacts; returns the manifest of the train rows.

    Runs on the driver's node, where a corpus given by path is stored.
    """
    start = time.monotonic()
    task = ray.remote(num_cpus=0)(write_corpus).options(scheduling_strategy=pin_to_driver_node())
    recipe, artifacts = run.recipe, (run.corpus(), run.heldout(), run.quarantine())
    try:
        counts = ray.get(task.remote(recipe.corpus, run.corpus_path, run.heldout_path, recipe.seed, *artifacts))
    except RayTaskError as error:
        raise unwrap_error(error) from None
    seconds = time.monotonic() - start
    count_rows(artifacts[0], counts[0]["rows"], counts[2]["rows"])
    # The time is measured once, and recorded for the corpus artifact.
    for artifact, count in zip(artifacts[1:], counts[1:], strict=True):
        finish(artifact, [count], 0.0)
    manifest = finish(artifacts[0], [counts[0]], seconds)
    if line := unused_line(manifest.counts):
        print_line(f"prepare: {line}")
    return manifest
