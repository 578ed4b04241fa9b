"""Runs all stages in order, skipping those whose artifact is finished and still fits the recipe."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from itertools import groupby
from typing import Any

import yaml

from profuser.artifacts.artifact import Manifest
from profuser.artifacts.lock import RunLock
from profuser.artifacts.tracking import Tracker, artifact_root, tracking_uri
from profuser.config import identity
from profuser.errors import ProfuserError, UserError, one_line
from profuser.recipe.models import Recipe
from profuser.run.beginning import begin
from profuser.run.endpoints import begin_endpoints
from profuser.run.failures import FAILED_PARTS, record_failures
from profuser.run.finding import RECIPE
from profuser.run.fusion_run import FusionRun
from profuser.run.stage import Part
from profuser.run.stages import REGISTRY, STAGES, stage_name, stage_of
from ray_jobs.pipeline.checks import (
    check_fits_recipe,
    check_inputs_finished,
    check_only,
    check_reward_categories,
    check_storage,
    check_target,
    check_tokenizers,
    cpu_memory_lines,
    is_part,
    stage_index,
)
from ray_jobs.pipeline.summary import RunSummary
from ray_jobs.runtime.cluster import connected, total_gpus
from ray_jobs.runtime.kept import Kept
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import OnDraining
from ray_jobs.runtime.stage_metrics import refresh, report_running


def run_pipeline(
    recipe: Recipe,
    redo: Sequence[str] = (),
    until: str = STAGES[-1],
    only: str | None = None,
    after_stage: Callable[[str, FusionRun], None] = lambda stage, run: None,
) -> FusionRun:
    """Runs the unfinished parts of a fusion.

    Args:
        recipe: what to run.
        redo: stages whose artifacts are deleted first, with those of all later stages.
        until: last stage to run; a later call continues from there.
        only: the only stage (`fuse`) or part (`collect/llama`) to run; its inputs must be finished.
        after_stage: called when all parts of a stage are finished, or have failed if the stage is optional.

    Raises:
        UserError: an input is missing, there is no such stage, a tokenizer cannot be aligned, the recipe no longer fits
            its artifacts, the storage cannot be written, or another driver is working on the run.
        ProfuserError: a stage failed, or another driver has taken the run over. The errors of an optional stage are raised when
            all other stages have run.
    """
    run = FusionRun(recipe)
    last = stage_index(until, "--until")
    check_storage(recipe.storage)
    run.check_inputs()
    if only:
        check_only([part.name for part in parts(run)], only, redo)
    with RunLock(run.folder, on_heartbeat=refresh) as lock:
        delete_stages(run, redo)
        check_fits_recipe(run)
        if only:
            check_inputs_finished(run, only, [part.artifact for part in _chosen(run, last, only)])
        if run.select().manifest() is None:
            check_tokenizers(run)
        if run.fuse().manifest() is None:
            for line in check_target(run):
                print_line(line)
        run = begin_endpoints(begin(run), print_line, [part.name for part in _chosen(run, last, only)])
        _run_stages(run, lock, _chosen(run, last, only), after_stage)
    return run


def parts(run: FusionRun) -> list[Part]:
    """Returns every part of a run, in order."""
    return [part for stage in REGISTRY.values() for part in stage.parts(run)]


def _chosen(run: FusionRun, last: int, only: str | None) -> list[Part]:
    """Returns the requested parts."""
    if only:
        return [part for part in parts(run) if is_part(part.name, only)]
    return [part for part in parts(run) if STAGES.index(stage_name(part.name)) <= last]


def _run_stages(
    run: FusionRun, lock: RunLock, chosen: Sequence[Part], after_stage: Callable[[str, FusionRun], None]
) -> None:
    recipe = run.recipe
    run.folder.write_bytes(RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
    uri = tracking_uri(recipe.storage)
    print_line(f"run {recipe.name}: {run.folder.uri}")
    tracker = Tracker.open(
        uri, recipe.tracking.experiment, recipe.name, identity(recipe), artifact_root(recipe.storage)
    )
    summary = RunSummary(run, lock, [part.artifact for part in parts(run)])
    from ray_jobs.runtime.concurrency import concurrent_parts, run_concurrently

    postponed: list[tuple[str, Exception]] = []
    try:
        with connected():
            if not total_gpus() and any(part.name == "fuse" and part.artifact.manifest() is None for part in chosen):
                for line in cpu_memory_lines(run):
                    print_line(line)
            for stage, group in groupby(chosen, lambda part: stage_of(part.name)):
                jobs = [list(job) for _, job in groupby(group, lambda part: part.group or part.name)]
                failures: list[tuple[str, Exception]] = []
                works = [partial(_run_job, tracker, summary, job, failures) for job in jobs]
                run_concurrently(works, concurrent_parts(stage.concurrency, run))
                if stage.optional:
                    record_failures(run, stage.name, {name: _reason(error) for name, error in failures})
                    postponed += failures
                else:
                    _raise_failures(failures)
                if stage.name == "prepare":
                    check_reward_categories(run)
                after_stage(stage.name, run)
        _raise_failures(postponed)
        if recipe.tracking.registered_model and summary.is_finished():
            version = tracker.register(recipe.tracking.registered_model, run.fused_model.uri)
            print_line(f"registered: models:/{recipe.tracking.registered_model}/{version}")
    except BaseException:
        summary.end("failed")
        tracker.end(failed=True)
        raise
    summary.end("finished" if summary.is_finished() else "stopped")
    tracker.end()


def _job(stage: str) -> Callable[..., Manifest]:
    """Returns the function that runs a part of a stage: `collect` of `ray_jobs.stages.collect`.

    Imported here: `--help` and `plan` load no engine, no trainer, no Ray.
    """
    return getattr(import_module(f"ray_jobs.stages.{stage}"), stage)


def _call(job: Callable[..., Manifest], run: FusionRun, part: Part, **offered: Any) -> Manifest:
    """Calls a stage's function with those of `handle` (the MLflow run of its part), `draining` and `kept` that it takes."""
    return job(
        run, *part.arguments, **{name: value for name, value in offered.items() if name in signature(job).parameters}
    )


def _run_job(
    tracker: Tracker,
    summary: RunSummary,
    job: Sequence[Part],
    failures: list[tuple[str, Exception]],
    draining: OnDraining,
) -> None:
    """Runs the parts of one group in turn, or a part without a group; the failures of a group's parts are collected."""
    with Kept() as kept:
        for part in job:
            try:
                _run_part(tracker, summary, part, draining, kept)
            except Exception as error:
                if part.group is None:
                    raise
                print_line(f"{part.name} failed: {_reason(error)}; continuing with the rest")
                failures.append((part.name, error))


def _raise_failures(failures: Sequence[tuple[str, Exception]]) -> None:
    """Raises what failed, once all other parts have run."""
    if not failures:
        return
    if unexpected := [error for _, error in failures if not isinstance(error, ProfuserError)]:
        raise unexpected[0]
    kinds = {type(error) for _, error in failures}
    kind = kinds.pop() if len(kinds) == 1 else ProfuserError
    listed = "; ".join(f"{name}: {_reason(error).removeprefix(f'{name}: ')}" for name, error in failures)
    raise kind(f"{len(failures)} failed, the other parts are finished; run again to retry: {listed}")


def _reason(error: Exception) -> str:
    """Returns an error on one line, with its type unless it is one of ours."""
    reason = one_line(error)
    return reason if isinstance(error, ProfuserError) else f"{type(error).__name__}: {reason}"


def _run_part(
    tracker: Tracker,
    summary: RunSummary,
    part: Part,
    draining: OnDraining,
    kept: Kept,
) -> None:
    """Runs one part of a stage unless it is finished; records it in `summary.json`, MLflow and Prometheus."""
    artifact, stage = part.artifact, stage_of(part.name)
    manifest, changes = artifact.manifest(), artifact.changes()
    if manifest and manifest.counts.get(FAILED_PARTS):
        changes = ["parts had failed when it was written"]
    if changes:
        # `check_fits_recipe` has refused every other stage with changes.
        print_line(f"{artifact.stage}: written again: {'; '.join(changes[:5])}")
        artifact.folder.delete()
    elif manifest is not None:
        print_line(f"{artifact.stage}: done before")
        summary.stage(artifact.stage, "finished", manifest)
        return
    summary.stage(artifact.stage, "running")
    with tracker.stage(artifact.stage) as handle, report_running(artifact):
        try:
            manifest = _call(
                _job(part.job or stage.name), summary.run, part, handle=handle, draining=draining, kept=kept
            )
        except BaseException:
            summary.stage(artifact.stage, "failed")
            raise
        # Separate names: under the name of a training curve, a value without a step would be drawn as its first point.
        results = manifest.counts | manifest.metrics | {"seconds": manifest.seconds}
        handle.log_metrics({f"stage/{key}": value for key, value in results.items()})
    if artifact.stage == "prepare/train":
        for name, path in summary.run.corpus_paths.items():
            tracker.log_dataset(name, path, manifest.config["digests"][name])
    if found := stage.results(artifact.stage, manifest.metrics):
        tracker.parent.log_metrics(found)
    summary.stage(artifact.stage, "finished", manifest)


def delete_stages(run: FusionRun, redo: Sequence[str]) -> None:
    """Deletes the artifacts of these stages and of all later ones; the only place where finished work is deleted."""
    for stage in redo:
        stage_index(stage, "--redo")
        for artifact in run.artifacts(stage):
            if not artifact.folder.uri.startswith(f"{run.folder.uri}/"):
                raise UserError(
                    f"--redo {stage}: {artifact.folder.uri} belongs to another run, which this one reuses; redo it there"
                )
    if redo:
        for stage in STAGES[min(stage_index(name, "--redo") for name in redo) :]:
            (run.folder / stage).delete()
