"""Prometheus metrics of a run, exported by Ray's agent on every node. Defines all ProFuser metrics except the gateway's.

Ray prefixes each name with `ray_`. A counter lives as long as its node; a gauge expires 20 s after it was last set, and one that is
not finite is not exported at all. So long-lived gauges are set again with every heartbeat of the run's lock (`refresh`), and
expire soon after a driver dies. If nothing scrapes them, this costs 2 microseconds a call, per shard and per update.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Gauge

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import MODES

LABELS = ("run", "stage", "part")
"""Labels of every metric. `part` is a source, a reward or an evaluated model; empty where a stage has none."""

ROWS_DONE = Counter("profuser_rows_done_total", "Rows of finished shards.", LABELS)
ROWS_QUARANTINED = Counter("profuser_rows_quarantined_total", "Rows refused by a source or quarantined.", LABELS)
TOKENS_READ = Counter(
    "profuser_tokens_read_total", "Response tokens that a source read teacher-forced or generated.", LABELS
)
STAGES_ENDED = Counter(
    "profuser_stages_ended_total", "Stages that finished, failed or were stopped.", (*LABELS, "state")
)
STEPS = Counter("profuser_steps_total", "Updates of the target, including skipped ones.", LABELS)
STEPS_SKIPPED = Counter("profuser_steps_skipped_total", "Updates whose gradient was not finite.", LABELS)
TOKENS_TRAINED = Counter("profuser_tokens_trained_total", "Response tokens trained on.", LABELS)

STAGE_RUNNING = Gauge("profuser_stage_running", "1 while a stage is running.", LABELS)
PROGRESS = Gauge(
    "profuser_progress_timestamp_seconds",
    "Time at which the last shard or update was done, or the stage started.",
    LABELS,
)
SHARDS_LEFT = Gauge("profuser_shards_left", "Shards that are not done yet.", LABELS)
ROWS_LEFT = Gauge("profuser_rows_left", "Rows that are not done yet.", LABELS)
ENGINE_REQUESTS = Gauge("profuser_engine_requests", "Requests in an engine: running or waiting.", (*LABELS, "state"))
LOSS = Gauge("profuser_loss_nats", "Loss of the last update, per response token.", (*LABELS, "loss"))
WEIGHT = Gauge("profuser_schedule_weight", "Weight of a mode in the last update.", (*LABELS, "mode"))
OF_AN_UPDATE = {
    "step": Gauge("profuser_step", "Number of the last update, from 0.", LABELS),
    "num_steps": Gauge("profuser_steps_planned", "Total number of updates.", LABELS),
    "learning_rate": Gauge("profuser_learning_rate", "Learning rate of the last update.", LABELS),
    "grad_norm": Gauge("profuser_gradient_norm", "Gradient norm of the last update, before clipping.", LABELS),
    "heldout_bits_per_byte": Gauge("profuser_heldout_bits_per_byte", "Bits per byte on the validation rows.", LABELS),
}
"""Gauges of the last update, by their names in a trainer's record."""

ENGINE_SECONDS = 1.0
"""Interval at which an engine reports its queue."""
Tags = dict[str, str]
_kept: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}


def tags_of(artifact: Artifact) -> Tags:
    """Returns the labels of an artifact's stage."""
    run = artifact.folder.uri.removesuffix(f"/{artifact.stage}").rpartition("/")[2]
    stage, _, part = artifact.stage.partition("/")
    return {"run": run, "stage": stage, "part": part}


def refresh() -> None:
    """Sets the long-lived gauges again; must be called at least every 20 s."""
    for (gauge, tags), value in _kept.copy().items():
        gauge.set(value, dict(tags))


def _keep(gauge: Gauge, value: float, tags: Tags) -> None:
    _kept[gauge, tuple(tags.items())] = value
    gauge.set(value, tags)


@contextmanager
def report_running(artifact: Artifact) -> Iterator[None]:
    """Reports a stage as running while the body runs, then as finished, failed or stopped (by a signal or another's failure)."""
    tags, state = tags_of(artifact), "failed"
    _keep(STAGE_RUNNING, 1.0, tags)
    try:
        yield
        state = "finished"
    except (KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    finally:
        for key in [key for key in list(_kept) if tags.items() <= set(key[1])]:
            del _kept[key]
        STAGE_RUNNING.set(0.0, tags)
        STAGES_ENDED.inc(1.0, tags | {"state": state})


def reported_counts(counts: Mapping[str, float]) -> dict[str, float]:
    """Returns the counts of a shard that `ShardMetrics.done` reports, under the same names for every stage."""
    tokens = counts.get("training_tokens", 0) + counts.get("inference_tokens", 0)
    return {"rows": counts["rows"], "refused": counts.get("refused", 0), "tokens": tokens}


class ShardMetrics:
    """Metrics of one attempt at a stage's missing shards.

    Args:
        artifact: artifact that is made.
        num_shards: number of missing shards.
        num_rows: number of rows in them.
    """

    def __init__(self, artifact: Artifact, num_shards: int, num_rows: int):
        self.tags, self.num_shards, self.num_rows = tags_of(artifact), num_shards, num_rows
        self._left()

    def done(self, counts: Mapping[str, float]) -> None:
        """Records a finished shard; `counts` come from `reported_counts`."""
        for counter, name in ((ROWS_DONE, "rows"), (ROWS_QUARANTINED, "refused"), (TOKENS_READ, "tokens")):
            _add(counter, counts[name], self.tags)
        self.num_shards -= 1
        self.num_rows -= int(counts["rows"])
        self._left()

    def _left(self) -> None:
        _keep(PROGRESS, time.time(), self.tags)
        _keep(SHARDS_LEFT, self.num_shards, self.tags)
        _keep(ROWS_LEFT, self.num_rows, self.tags)


def count_rows(kept: Artifact, num_rows: float, num_quarantined: float = 0.0) -> None:
    """Counts the rows of a stage that is not done shard by shard."""
    _add(ROWS_DONE, num_rows, tags_of(kept))
    _add(ROWS_QUARANTINED, num_quarantined, tags_of(kept))


class EngineMetrics:
    """Metrics of an engine: reports its queue periodically, and when it becomes busy or idle."""

    def __init__(self, artifact: Artifact):
        self.tags, self.next, self.busy = tags_of(artifact), 0.0, False

    def __call__(self, engine: Any, num_requests: int) -> None:
        """Called after each engine step, with the number of requests that have no response yet."""
        now = time.monotonic()
        if now < self.next and self.busy == bool(num_requests):
            return
        self.next, self.busy = now + ENGINE_SECONDS, bool(num_requests)
        running = min(num_requests, getattr(engine, "num_running", num_requests))
        for state, number in (("running", running), ("waiting", num_requests - running)):
            ENGINE_REQUESTS.set(number, self.tags | {"state": state})


class TrainingMetrics:
    """Metrics of the target's updates. The driver reports them: a worker that ends loses what it has not exported yet."""

    def __init__(self, artifact: Artifact):
        self.tags = tags_of(artifact)
        _keep(PROGRESS, time.time(), self.tags)

    def update(self, record: Mapping[str, float]) -> None:
        """Records a finished update from the trainer's record."""
        STEPS.inc(1.0, self.tags)
        if math.isfinite(record["grad_norm"]):
            _add(TOKENS_TRAINED, record["tokens"], self.tags)
        else:
            STEPS_SKIPPED.inc(1.0, self.tags)
        _keep(PROGRESS, time.time(), self.tags)
        for name, gauge in OF_AN_UPDATE.items():
            if name in record:
                _keep(gauge, record[name], self.tags)
        for mode in (*MODES, "preference", "on_policy"):
            _keep(WEIGHT, record.get(f"weight_{mode}", 0.0), self.tags | {"mode": mode})
        for name in record:
            if name.endswith("_nats"):
                _keep(LOSS, record[name], self.tags | {"loss": name.removesuffix("_nats")})


def _add(counter: Counter, number: float, tags: Tags) -> None:
    # Ray rejects an increment of 0.
    if number:
        counter.inc(number, tags)
