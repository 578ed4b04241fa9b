"""Stage `benchmarks`, once per model and benchmark: an actor loads the model, runs its benchmarks and writes a row per item."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from profuser.artifacts.artifact import Artifact, Manifest, sum_counts
from profuser.artifacts.stage_time import DeviceClock
from profuser.errors import EngineError, ProfuserError, one_line
from profuser.evaluation.benchmarks.checks import benchmark_size, local_data
from profuser.evaluation.benchmarks.data import Pack
from profuser.evaluation.benchmarks.results import benchmark_score, metric_means, standard_error
from profuser.models.reference import local_model
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.models import ModelConfig
from profuser.recipe.template import TemplateConfig
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import check_fits, unwrap_error
from ray_jobs.runtime.concurrency import concurrent_models
from ray_jobs.runtime.engine_fit import FittedEngine, fit_engine
from ray_jobs.runtime.kept import Kept
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import finish

MAX_RETRIES = 2
"""Retries of a benchmark whose process or node dies; the model is loaded again."""


@dataclass(frozen=True)
class _Task:
    """A benchmark that an actor measures."""

    output: Artifact
    benchmark: BenchmarkConfig
    pack: Pack | None
    num_devices: float
    began: float
    """Start of this attempt, in seconds since the epoch."""


class _Measurer:
    """Actor that holds one model, loaded for its first benchmark. Its process exits afterwards and so releases its device."""

    def __init__(self, path: str, model: ModelConfig, template: TemplateConfig):
        self.path, self.model, self.template = path, model, template
        self.lm: Any = None
        self.failure: EngineError | None = None

    def measure(self, task: _Task) -> None:
        """Measures the model on one benchmark and writes a row per item."""
        from profuser.evaluation.benchmarks.models import set_batch_size
        from profuser.evaluation.benchmarks.runs import run_benchmark
        from profuser.evaluation.benchmarks.tasks import load_benchmark

        clock = DeviceClock(task.output, task.num_devices, task.began)
        benchmark = load_benchmark(task.benchmark, task.pack)
        lm = self._loaded()
        set_batch_size(lm, task.benchmark.batch_size)
        clock.note()
        table = run_benchmark(lm, benchmark)
        counts = {"rows": table.num_rows, "truncated": sum(table["truncated"].to_pylist())}
        task.output.write_shard(0, table, counts)
        clock.note()

    def _loaded(self) -> Any:
        from profuser.evaluation.benchmarks.models import load_lm

        if self.failure:
            raise self.failure
        if self.lm is None:
            try:
                path = local_model(self.path, self.model.revision)
                self.lm = load_lm(path, self.model.revision, self.model.engine, self.template)
            except EngineError as error:
                self.failure = error
                raise
        return self.lm


class _LoadedModel:
    """The actor of one model, as a context: it is started for the first benchmark, and again if its process dies."""

    def __init__(self, stage: str, path: str, fitted: FittedEngine[ModelConfig], template: TemplateConfig):
        self.stage, self.fitted, self.arguments = stage, fitted, (path, fitted.model, template)
        self.actor: Any = None

    def measure(self, task: _Task) -> None:
        """Measures one benchmark; raises the error of its task, or ProfuserError if its process keeps dying."""
        for attempt in range(MAX_RETRIES + 1):
            self.actor = self.actor or self._start()
            try:
                _wait(self.actor.measure.remote(task))
                return
            except RayTaskError as error:
                raise unwrap_error(error) from None
            except RayError as error:
                self.actor = None
                if attempt == MAX_RETRIES:
                    reason = one_line(error)
                    raise ProfuserError(
                        f"{task.output.stage}: its process died: {reason}; run again to retry"
                    ) from None

    def _start(self) -> Any:
        for line in self.fitted.needs.lines:
            print_line(f"{self.stage}: {line}")
        resources = self.fitted.resources
        check_fits(self.stage, resources["num_cpus"], self.fitted.num_gpus)
        return ray.remote(scheduling_strategy="SPREAD", **resources)(_Measurer).remote(*self.arguments)

    def __enter__(self) -> "_LoadedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.actor and error:
            ray.kill(self.actor)
        elif self.actor:
            self.actor.__ray_terminate__.remote()
        self.actor = None


def benchmarks(run: FusionRun, name: str, config: BenchmarkConfig, kept: Kept | None = None) -> Manifest:
    """Runs the stage for one model (`target`, `fused` or a source's name) and one benchmark.

    Args:
        run: the fused run.
        name: name of the model.
        config: the benchmark.
        kept: keeps the loaded model for the model's next benchmarks; by default it is released at the end.
    """
    if kept is None:
        with Kept() as own:
            return benchmarks(run, name, config, own)
    start, began = time.monotonic(), time.time()
    output = run.benchmark(name, config)
    if not output.finished_shards():
        path, model = run.evaluated_model(name)
        pack = local_data(config)
        items = benchmark_size(config, pack)[0]
        size = f" {items:,} items" if items else ""
        print_line(f"{output.stage}: measuring{size}")
        fitted = fit_engine(run, model, path, concurrent_models(run))
        loaded = kept.once(lambda: _LoadedModel(output.stage, path, fitted, run.template(model)))
        devices = fitted.num_gpus or fitted.resources["num_cpus"]
        loaded.measure(_Task(output, config, pack, devices, began))
    counts: list[Mapping[str, float]] = list(output.finished_shards().values())
    table = pa.concat_tables(output.tables())
    found = {"score": benchmark_score(table), "items": float(table.num_rows)}
    if math.isfinite(error := standard_error(table)):
        found["standard_error"] = error
    manifest = finish(output, counts, time.monotonic() - start, **found | metric_means(table))
    _print_score(output.stage, manifest, sum_counts(counts))
    return manifest


def _print_score(stage: str, manifest: Manifest, counts: dict[str, float]) -> None:
    score, error = 100 * manifest.metrics["score"], manifest.metrics.get("standard_error")
    spread = " % (one item: no standard error)" if error is None else f" +/- {100 * error:.1f} %"
    cut = f"; {counts['truncated']:,.0f} prompts exceeded its context and were truncated" if counts["truncated"] else ""
    print_line(f"{stage}: {score:.1f}{spread}{cut}")


def _wait(task: ray.ObjectRef) -> None:
    """Waits for a task and raises its error. Waits are short: an interruption of the thread takes effect between them."""
    while not ray.wait([task], timeout=1.0)[0]:
        continue
    ray.get(task)
