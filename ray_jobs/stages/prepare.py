"""Stage `prepare`: reads the corpus, quarantines unusable rows, and writes train and held-out shards."""

import time

import ray
from ray.exceptions import RayTaskError

from profuser.artifacts.artifact import Manifest
from profuser.corpus import unused_line
from profuser.corpus.decontaminate import contamination_lines
from profuser.corpus.mix import parts_line
from profuser.corpus.stage import write_corpus
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import pin_to_driver_node, unwrap_error
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import finish
from ray_jobs.runtime.stage_metrics import count_rows


def prepare(run: FusionRun) -> Manifest:
    """Reads the corpus and writes its artifacts; returns the manifest of the training rows.

    Runs on the driver's node, where a corpus given by path is stored.
    """
    start = time.monotonic()
    task = ray.remote(num_cpus=0)(write_corpus).options(scheduling_strategy=pin_to_driver_node())
    artifacts, questions = run.prepared(), run.benchmark_questions()
    try:
        counts = ray.get(task.remote(run.corpus_config, run.recipe.seed, artifacts, questions))
    except RayTaskError as error:
        raise unwrap_error(error) from None
    seconds = time.monotonic() - start
    count_rows(artifacts[0], counts[0]["rows"], counts[2]["rows"])
    # The time is measured once, and recorded for the corpus artifact.
    for artifact, count in zip(artifacts[1:], counts[1:], strict=True):
        finish(artifact, [count], 0.0)
    manifest = finish(artifacts[0], [counts[0]], seconds)
    own, held = manifest.counts, unused_line(counts[1])
    said = [parts_line(own), *contamination_lines(own), unused_line(own), held and f"held-out corpus: {held}"]
    for line in filter(None, said):
        print_line(f"prepare: {line}")
    return manifest
