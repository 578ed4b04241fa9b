"""Stage `benchmarks`, once per model and benchmark: a Ray task loads the model, runs the benchmark and writes a row per item."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from profuser.artifacts.artifact import Artifact, Manifest, sum_counts
from profuser.artifacts.stage_time import DeviceClock
from profuser.errors import ProfuserError, one_line
from profuser.evaluation.benchmarks.checks import benchmark_size, local_data
from profuser.evaluation.benchmarks.data import Pack
from profuser.evaluation.benchmarks.results import benchmark_score, metric_means, standard_error
from profuser.models.reference import local_model
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.models import ModelConfig, TemplateConfig
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import check_fits, unwrap_error
from ray_jobs.runtime.concurrency import concurrent_models
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import finish

MAX_RETRIES = 2
"""Retries of a task whose process or node dies."""


@dataclass(frozen=True)
class _Part:
    """Arguments of a task that measures one model on one benchmark."""

    output: Artifact
    path: str
    model: ModelConfig
    template: TemplateConfig
    benchmark: BenchmarkConfig
    pack: Pack | None
    num_devices: float
    began: float
    """Start of this attempt, in seconds since the epoch."""


def _measure(part: _Part) -> None:
    """Measures one model on one benchmark and writes a row per item.

    Runs in a separate process, which exits afterwards and so releases its device.
    """
    from profuser.evaluation.benchmarks.models import load_lm
    from profuser.evaluation.benchmarks.runs import run_benchmark
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    clock = DeviceClock(part.output, part.num_devices, part.began)
    path = local_model(part.path)
    benchmark = load_benchmark(part.benchmark, part.pack)
    lm = load_lm(path, part.model.revision, part.model.engine, part.template, part.benchmark.batch_size)
    clock.note()
    table = run_benchmark(lm, benchmark)
    counts = {"rows": table.num_rows, "truncated": sum(table["truncated"].to_pylist())}
    part.output.write_shard(0, table, counts)
    clock.note()


def benchmarks(run: FusionRun, name: str, config: BenchmarkConfig) -> Manifest:
    """Runs the stage for one model (`target`, `fused` or a source's name) and one benchmark."""
    start, began = time.monotonic(), time.time()
    output = run.benchmark(name, config)
    if not output.finished_shards():
        path, model = run.evaluated_model(name)
        fitted = fit_engine(run, model, path, concurrent_models(run))
        resources = fitted.resources
        check_fits(output.stage, resources["num_cpus"], fitted.num_gpus)
        pack = local_data(config)
        devices = fitted.num_gpus or resources["num_cpus"]
        part = _Part(output, path, fitted.model, run.recipe.template, config, pack, devices, began)
        items = benchmark_size(config, pack)[0]
        size = f" {items:,} items" if items else ""
        for line in (*fitted.needs.lines, f"measuring{size}"):
            print_line(f"{output.stage}: {line}")
        task = ray.remote(max_calls=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(_measure)
        _wait(output.stage, task.options(**resources).remote(part))
    counts: list[Mapping[str, float]] = list(output.finished_shards().values())
    table = pa.concat_tables(output.tables())
    found = {"score": benchmark_score(table), "standard_error": standard_error(table), "items": float(table.num_rows)}
    manifest = finish(output, counts, time.monotonic() - start, **found | metric_means(table))
    _print_score(output.stage, manifest, sum_counts(counts))
    return manifest


def _print_score(stage: str, manifest: Manifest, counts: dict[str, float]) -> None:
    score, error = 100 * manifest.metrics["score"], 100 * manifest.metrics["standard_error"]
    cut = f"; {counts['truncated']:,.0f} prompts exceeded its context and were truncated" if counts["truncated"] else ""
    print_line(f"{stage}: {score:.1f} +/- {error:.1f} %{cut}")


def _wait(stage: str, task: ray.ObjectRef) -> None:
    """Waits for a task and raises its error; cancels the task if the thread is interrupted."""
    try:
        # Short waits: an interruption of the thread takes effect between them.
        while not ray.wait([task], timeout=1.0)[0]:
            continue
        ray.get(task)
    except RayTaskError as error:
        raise unwrap_error(error) from None
    except RayError as error:
        reason = one_line(error)
        raise ProfuserError(f"{stage}: its process died: {reason}; run again to retry") from None
    except BaseException:
        ray.cancel(task, force=True)
        raise
