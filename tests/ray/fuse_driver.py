"""Runs a driver of stage `fuse` in a separate process, to be killed: `python -m tests.ray.fuse_driver STORAGE CORPUS SETTINGS`."""

import json
import sys
from pathlib import Path

from profuser.artifacts.tracking import Tracker
from ray_jobs.runtime.cluster import connected
from ray_jobs.stages.fuse import fuse
from tests.ray.stages import make_run

SETTINGS = {
    "duration": {"kind": "steps", "value": 40},
    "batch_tokens": 800,
    "max_tokens": 128,
    "micro_batch_tokens": 512,
    "checkpoint_every_steps": 5,
    "validation_rows": 6,
    "optimizer": {"learning_rate": 1.0e-3},
    # All modes; the pairs begin in the middle of the run.
    "schedule": [
        {"until": 0.5, "inference": 1.0, "training": 0.0},
        {"until": 1.0, "inference": 0.1, "training": 1.0, "preference": 0.5},
    ],
}


def run_of(storage, corpus, **settings):
    """Returns the run to which the stage belongs."""
    workers = {"num_workers": 2, "num_cpus": 0.5, **settings.pop("workers", {})}
    fuse_settings = {**SETTINGS, "workers": workers, **settings}
    select = {"preference": {"within": "row"}}
    rewards = [{"kind": "chrf", "name": "chrf", "accept_above": None}]
    return make_run(storage, corpus, kind="transformers", fuse=fuse_settings, select=select, rewards=rewards)


if __name__ == "__main__":
    storage, corpus = map(Path, sys.argv[1:3])
    with connected():
        tracker = Tracker.open(f"sqlite:///{storage}/mlflow.db", "profuser", "tiny", {}, str(storage))
        with tracker.stage("fuse") as handle:
            fuse(run_of(storage, corpus, **json.loads(sys.argv[3])), handle=handle)
