"""Processes shards in an actor pool, for collect, rewards, select and evaluate.

Ray Data streams shard numbers, one per block, through a pool of actors. An actor reads its inputs and writes its shard itself;
only counts return to the driver. A shard is done when its file exists, so a second attempt does only the missing ones.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import ray
from ray.exceptions import RayTaskError

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.stage_time import DeviceClock, clear_notes, stage_time
from profuser.errors import ProfuserError
from profuser.recipe.resources import PoolConfig
from ray_jobs.runtime.cluster import check_fits, is_autoscaling_cluster, pool_resources, unwrap_error
from ray_jobs.runtime.progress import Counter, format_clock, print_line
from ray_jobs.runtime.row_progress import RowProgress, RowReporter, ShardKey, row_board
from ray_jobs.runtime.stage_metrics import ShardMetrics, reported_counts
from ray_jobs.runtime.stalls import StallWatch, describe_workers

OnDraining = Callable[[], None]
"""Called when the last shards of a stage are in progress, so that the next job may start loading."""


class ShardWorker(Protocol):
    """Work of an actor of the pool. Constructed once per actor; the constructor loads models."""

    def process(self, shard: int) -> dict[str, float]:
        """Makes and writes one shard; returns its counts, including `rows`."""
        ...


@runtime_checkable
class ReportsRows(Protocol):
    """Worker that reports the rows of a shard as they are answered."""

    def report_to(self, reporter: RowReporter) -> None:
        """Sets where it reports; called once, before the first shard."""
        ...


class ActorNeeds(NamedTuple):
    """What an actor needs in addition to the CPUs and GPUs of its pool."""

    memory_bytes: int = 0
    """Memory that it requests from Ray; 0 for none."""
    lines: tuple[str, ...] = ()
    """What to print when actors are started."""


class ExtraShards(NamedTuple):
    """Shards of another artifact that the actors make after their own, while their models are loaded."""

    source: Artifact
    """Artifact whose shards it follows one to one."""
    artifact: Artifact
    method: str
    """Name of the worker's method, with the signature of `ShardWorker.process`."""

    def left(self) -> list[dict[str, Any]]:
        """Returns the missing shards, as rows for the actors."""
        finished = self.artifact.finished_shards()
        return [{"shard": s, "method": self.method} for s in self.source.shards() if s not in finished]


class _Actor:
    """Adapts a worker to Ray Data's batches, and records how long it holds its devices."""

    def __init__(self, make: Callable[[], ShardWorker], held: dict[str, Any], board: Any):
        self.clock = DeviceClock(**held)
        self.failure: ProfuserError | None = None
        try:
            self.worker = make()
            if isinstance(self.worker, ReportsRows):
                self.worker.report_to(RowReporter(held["artifact"].stage, self.clock.name, board))
        except ProfuserError as error:
            # Raised in `__call__`: Ray retries a failing constructor and loses its message.
            self.failure = error
        self.clock.note()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        if self.failure:
            raise self.failure
        methods, shards = batch["method"].tolist(), batch["shard"].tolist()
        calls = zip(methods, shards, strict=True)
        counts = [reported_counts(getattr(self.worker, method)(shard)) for method, shard in calls]
        self.clock.note()
        return {"method": methods, "shard": shards, **{name: [c[name] for c in counts] for name in counts[0]}}


def run_shards(
    artifact: Artifact,
    source: Artifact,
    worker: Callable[[], ShardWorker],
    pool: PoolConfig,
    num_gpus: float,
    in_flight: int = 1,
    draining: OnDraining | None = None,
    riders: Sequence[ExtraShards] = (),
    needs: ActorNeeds = ActorNeeds(),
) -> tuple[list[Mapping[str, float]], float]:
    """Makes all missing shards of an artifact.

    Args:
        artifact: artifact to make.
        source: artifact whose shards it follows one to one.
        worker: called in each actor to construct its worker: a class, or a `partial` of one.
        pool: size of the pool and CPUs of an actor.
        num_gpus: GPUs of an actor.
        in_flight: shards that an actor works on concurrently, in as many threads.
        draining: called once, when actors have started all shards.
        riders: other artifacts that the actors work on if any shard of the artifact is missing. Their own stages finish them.
        needs: what an actor with an engine needs.

    Returns:
        Counts of every shard, and the seconds taken by this attempt.
    """
    start, began = time.monotonic(), time.time()
    finished = artifact.finished_shards()
    wanted = source.shards()
    left = [{"shard": shard, "method": "process"} for shard in wanted if shard not in finished]
    done = int(sum(counts["rows"] for counts in finished.values()))
    total = _num_rows(source)
    for rider in riders if left else ():
        left += rider.left()
        total += _num_rows(rider.source)
        done += int(sum(counts["rows"] for counts in rider.artifact.finished_shards().values()))
    with Counter(artifact.stage, total, "rows", done) as counter:
        if left:
            for line in needs.lines:
                print_line(f"{artifact.stage}: {line}")
            resources = pool_resources(pool, num_gpus, needs.memory_bytes)
            num_cpus = resources["num_cpus"]
            check_fits(artifact.stage, num_cpus, num_gpus)
            held = {"artifact": artifact, "num_devices": num_gpus or num_cpus, "began": began}
            requested = {"CPU": num_cpus, "GPU": num_gpus, "memory": float(needs.memory_bytes)}
            board = row_board(artifact.stage)
            dataset = _dataset(left, (worker, held, board), pool, resources, in_flight)
            metrics = ShardMetrics(artifact, len(left), total - done)
            why = describe_workers(artifact, began, requested, "actors")
            num_unbegun = len(left) - in_flight * min(pool.max_actors, len(left))
            with (
                StallWatch(artifact.stage, why) as watch,
                RowProgress(artifact.stage, counter, watch, board) as progress,
            ):
                _stream(watch.over(dataset.iter_rows()), progress, metrics, num_unbegun, draining)
    if draining and not left:
        draining()
    finished = artifact.finished_shards()
    missing = [shard for shard in wanted if shard not in finished]
    if missing:
        raise ProfuserError(f"{artifact.stage}: shards {missing[:5]} were not written; run again to make them")
    return list(finished.values()), time.monotonic() - start


def _num_rows(artifact: Artifact) -> int:
    manifest = artifact.manifest()
    return int(manifest.counts["rows"]) if manifest else 0


def _dataset(
    items: list[dict[str, Any]], arguments: tuple[Any, ...], pool: PoolConfig, resources: dict[str, Any], in_flight: int
) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # It advises to request memory, in eleven lines every 30 s: we do.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    most = max(pool.min_actors, min(pool.max_actors, len(items)))
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            # A pool only grows into existing nodes; on a cluster, pending actors are what makes it add nodes.
            min_size=most if is_autoscaling_cluster() else pool.min_actors,
            max_size=most,
            max_tasks_in_flight_per_actor=2 * in_flight,
            max_concurrent_calls_per_actor=in_flight,
            enable_true_multi_threading=in_flight > 1,
        ),
        **resources,
    )


def _stream(
    rows: Iterable[Mapping[str, Any]],
    progress: RowProgress,
    metrics: ShardMetrics,
    num_unbegun: int,
    draining: OnDraining | None,
) -> None:
    """Counts finished shards; `num_unbegun` is how many shards exceed what the actors hold in flight."""
    try:
        for done, row in enumerate(rows, 1):
            progress.finished(ShardKey(row["method"], row["shard"]), int(row["rows"]))
            metrics.done(row)
            if draining and done == max(1, num_unbegun):
                draining()
    except RayTaskError as error:
        raise unwrap_error(error) from None


def finish(artifact: Artifact, counts: list[Mapping[str, float]], seconds: float, **metrics: float) -> Manifest:
    """Writes the manifest and prints the stage's counts; the time of earlier attempts is added to this one's `seconds`."""
    spent = stage_time(artifact, seconds)
    manifest = artifact.finish(counts, spent.seconds, metrics, spent.device_seconds)
    clear_notes(artifact)
    shown = {name.replace("_", " "): value for name, value in manifest.counts.items() if value and "/" not in name}
    if shown or seconds:
        text = ", ".join(f"{value:,.0f} {name}" for name, value in shown.items()) or "done"
        print_line(f"{artifact.stage}: {text} in {format_clock(seconds)}")
    return manifest
