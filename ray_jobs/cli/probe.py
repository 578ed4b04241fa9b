"""Implements `profuser plan --probe N`: runs N corpus rows through every source on the run's engine and devices, and extrapolates.

A probe does not touch the run's artifacts: it writes to temporary folders, only to measure sizes.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from profuser.artifacts.artifact import Artifact
from profuser.corpus.stage import write_corpus
from profuser.engines.base import ReadSettings
from profuser.engines.loading import ReadModel
from profuser.errors import EngineError, UserError, one_line
from profuser.models.reference import local_model
from profuser.planning.engine_check import Disagreement, ScoredRow, compare
from profuser.planning.estimates import (
    STEPS_PER_TOKEN,
    Cost,
    Probe,
    SourceSetting,
    add_costs,
    collect_cost,
    disk_costs,
    estimate,
    signals_cost,
)
from profuser.planning.plan_file import ProbedPlan, StagePlan, write_plan
from profuser.planning.probe import probe_rows
from profuser.recipe.models import SourceConfig
from profuser.run.beginning import begin
from profuser.run.endpoints import begin_endpoints, endpoint_access
from profuser.run.fusion_run import FusionRun
from profuser.storage.folder import Folder
from ray_jobs.pipeline.checks import check_storage, check_tokenizers
from ray_jobs.runtime.cluster import check_fits, connected, gpus_for, unwrap_error
from ray_jobs.runtime.concurrency import concurrent_sources, engines_at_once, run_concurrently
from ray_jobs.runtime.engine_fit import ENDPOINT_CPUS, fit_engine
from ray_jobs.runtime.nodes import free_cpus, share_of_cpus
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import OnDraining

FULL_BATCHES = 4
"""Multiple of an engine's concurrent requests above which filling and draining its batch hardly affects the measured speed."""


@dataclass(frozen=True)
class Drawn:
    """Rows drawn from the corpus, and the size of that corpus."""

    rows: pa.Table
    num_rows: int
    """Number of rows of the whole corpus, without the held-out ones."""
    num_shards: int


def probe(run: FusionRun, num_rows: int) -> ProbedPlan:
    """Probes every source, as many concurrently as the run would collect, and writes the plan to the run's folder.

    Args:
        run: the run whose settings, seed and devices are used.
        num_rows: number of rows to probe; a smaller corpus is probed whole.

    Raises:
        UserError: `num_rows` is less than 1; a check that a run makes before it starts fails; or a source refuses all rows.
        EngineError: an engine cannot load its model, or dies.
    """
    if num_rows < 1:
        raise UserError(f"--probe {num_rows}: give the number of rows to run through every source, at least 1")
    check_storage(run.recipe.storage)
    run.check_inputs()
    run.folder.check_writable()
    run = begin_endpoints(begin(run), print_line)
    check_tokenizers(run)
    drawn = draw(run, num_rows)
    if len(drawn.rows) < num_rows:
        print_line(f"--probe {num_rows:,}: the corpus has only {drawn.num_rows:,} rows; all are probed")
    probes: dict[str, Probe] = {}
    engines: dict[str, str] = {}
    with connected():
        works = [partial(_probe_source, run, source, drawn.rows, probes, engines) for source in run.recipe.sources]
        run_concurrently(works, concurrent_sources(run.recipe))
        plan = make_plan(run, drawn, probes)
    compared = tuple(engines[source.name] for source in run.recipe.sources if source.name in engines)
    plan = replace(plan, notes=(*plan.notes, *compared))
    write_plan(run.folder, plan)
    return plan


def draw(run: FusionRun, num_rows: int) -> Drawn:
    """Draws rows that the run would collect, at random under its seed and without replacement: corpora are often sorted."""
    with _corpus(run) as corpus:
        sizes = [len(table) for table in corpus.tables(["row_id"])]
        total = sum(sizes)
        chosen = np.sort(np.random.default_rng(run.recipe.seed).choice(total, min(num_rows, total), replace=False))
        shards, begins = np.array(corpus.shards()), np.cumsum([0, *sizes])
        places = np.searchsorted(begins, chosen, side="right") - 1
        parts = [
            corpus.read_shard(int(shards[place])).take(chosen[places == place] - begins[place])
            for place in np.unique(places)
        ]
        return Drawn(pa.concat_tables(parts), total, len(sizes))


@contextmanager
def _corpus(run: FusionRun) -> Iterator[Artifact]:
    """Yields the rows that the run collects: the run's own where prepared, else prepared in a temporary folder."""
    if run.corpus().is_complete():
        yield run.corpus()
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = [replace(part, folder=Folder.at(folder) / part.stage) for part in run.artifacts("prepare")]
        write_corpus(run.corpus_config, run.recipe.seed, parts, run.benchmark_questions())
        yield parts[0]


def _probe_source(
    run: FusionRun,
    source: SourceConfig,
    rows: pa.Table,
    probes: dict[str, Probe],
    engines: dict[str, str],
    _: OnDraining,
) -> None:
    """Runs one source's probe on its devices, in a separate process; then compares its engine with Transformers in another."""
    path = run.model(source).path
    fitted = fit_engine(run, source, path, engines_at_once(run.recipe, source))
    resources = fitted.resources
    check_fits(f"collect/{source.name}", resources["num_cpus"], fitted.num_gpus)
    # A reused worker process would leave the next source's engine too little memory.
    task: Any = ray.remote(max_calls=1, max_retries=0)(_measure)
    model = ReadModel(path, fitted.model, run.template(source), endpoint_access(run, source))
    how = (run.reading(source), run.recipe.collect.top_k, run.collect(source), run.signals(source), source.token_cost)
    for line in (*fitted.needs.lines, f"{len(rows):,} rows"):
        print_line(f"probe/{source.name}: {line}")
    start = time.monotonic()
    try:
        found, scored, ready_seconds = ray.get(task.options(**resources).remote(model, rows, *how))
    except RayTaskError as error:
        raise unwrap_error(error) from None
    except RayError as error:
        words = one_line(error, 200)
        raise EngineError(f"probe/{source.name}: the engine's process died over {len(rows)} rows: {words}") from None
    probes[source.name] = replace(found, start_seconds=time.monotonic() - start - ready_seconds)
    if scored:
        engines[source.name] = _compare_engine(model, scored, resources)


def _compare_engine(model: ReadModel, scored: list[ScoredRow], resources: dict[str, Any]) -> str:
    """Returns a sentence on how far the engine is from Transformers, or on why it was not compared."""
    name = model.config.name if isinstance(model.config, SourceConfig) else model.path
    if model.config.num_devices > 1:
        return (
            f"source {name}: vLLM was not compared with Transformers, which would need one device for the whole model"
        )
    # The first process has exited: its memory is free.
    task: Any = ray.remote(max_calls=1, max_retries=0)(_compare)
    try:
        found: Any = ray.get(task.options(**resources).remote(model, scored))
        return found.sentence(name)
    except RayError as error:
        cause = unwrap_error(error) if isinstance(error, RayTaskError) else error
        return f"source {name}: vLLM was not compared with Transformers: {one_line(cause, 200)}"


def _compare(model: ReadModel, scored: list[ScoredRow]) -> Disagreement:
    path = local_model(model.path, model.config.revision)
    return compare(path, model.config.revision, model.config.engine, scored)


def _measure(model: ReadModel, rows: pa.Table, how: ReadSettings, *more: Any) -> tuple[Probe, list[ScoredRow], float]:
    """Returns the probe, rows to compare the engine on, and the seconds since the engine was ready."""
    source = model.load()
    source.read(rows.slice(0, 1), how)  # The extra cost of a first request counts as start-up.
    ready = time.monotonic()
    return *probe_rows(source, rows, how, *more), time.monotonic() - ready


def make_plan(run: FusionRun, drawn: Drawn, probes: dict[str, Probe]) -> ProbedPlan:
    """Extrapolates the measurements to all rows of the run."""
    recipe = run.recipe
    costs: list[tuple[Artifact, Cost]] = []
    disks: dict[str, list[Cost]] = {"eager": [], "lazy": []}
    for source in recipe.sources:
        probed, setting = probes[source.name], _setting(run, source, drawn)
        costs.append((run.collect(source), collect_cost(probed, setting)))
        if setting.lazy:
            costs.append((run.signals(source), signals_cost(probed, setting)))
        for kind, cost in disk_costs(probed, setting).items():
            disks[kind].append(cost)
    total = estimate(add_costs([cost for _, cost in costs]), drawn.num_rows)
    return ProbedPlan(
        num_probed=len(drawn.rows),
        num_rows=drawn.num_rows,
        seed=recipe.seed,
        currency=recipe.plan.currency,
        stages=tuple(
            StagePlan(artifact.stage, artifact.fingerprint, estimate(cost, drawn.num_rows)) for artifact, cost in costs
        ),
        total={name: value for name, value in total.items() if name != "seconds"},
        disk_bytes={kind: estimate(add_costs(parts), drawn.num_rows)["disk_bytes"] for kind, parts in disks.items()},
        notes=(*_queue_notes(run, len(drawn.rows), drawn.num_rows), *_round_notes(run)),
    )


def _setting(run: FusionRun, source: SourceConfig, drawn: Drawn) -> SourceSetting:
    recipe, pool = run.recipe, source.pool
    return SourceSetting(
        num_shards=drawn.num_shards,
        num_samples=recipe.collect.samples_per_source,
        num_actors=max(pool.min_actors, min(pool.max_actors, drawn.num_shards)),
        devices=gpus_for(source) or (_cpus(run, source) if pool.num_cpus is None else pool.num_cpus),
        price=recipe.plan.price(pool),
        share=1 / len(recipe.teachers) if source in recipe.teachers else 0.0,
        lazy=recipe.collect.signals == "lazy",
        own_share=recipe.own_share(source),
        steps_per_token=STEPS_PER_TOKEN if recipe.select.condition == "exact" else 0.0,
    )


def _cpus(run: FusionRun, source: SourceConfig) -> float:
    """Returns the CPUs that an engine of a source gets by default; 1 without a cluster."""
    if source.endpoint:
        return ENDPOINT_CPUS
    return share_of_cpus(free_cpus(), engines_at_once(run.recipe, source)) if ray.is_initialized() else 1.0


def _round_notes(run: FusionRun) -> tuple[str, ...]:
    """Says that later rounds are not in the plan."""
    more = run.recipe.fuse.num_rounds - 1
    if not more:
        return ()
    rounds = (
        f"{more} more rounds of the target's answers, which are"
        if more > 1
        else "a second round of the target's answers, which is"
    )
    return (f"{rounds} not measured here; profuser plan without --probe estimates their tokens",)


def _queue_notes(run: FusionRun, num_probed: int, num_rows: int) -> tuple[str, ...]:
    """Names the engines that had too few requests to reach the run's speed, and how many rows would be enough."""
    per_row = 1 + run.recipe.collect.samples_per_source
    at_once = {s.name: s.endpoint.concurrency if s.endpoint else s.engine.max_num_seqs for s in run.recipe.sources}
    wanted = {name: math.ceil(FULL_BATCHES * number / per_row) for name, number in at_once.items()}
    idle = [name for name, rows in wanted.items() if num_probed < min(rows, num_rows)]
    if not idle:
        return ()
    enough = min(num_rows, max(wanted[name] for name in idle))
    return (
        f"{num_probed:,} rows at once do not fill the engine of {', '.join(idle)} for long: its time and cost are overestimated; "
        f"--probe {enough} would be more accurate",
    )
