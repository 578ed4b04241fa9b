"""The main job: all stages in order, each skipped where its artifact is finished and still fits."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import yaml

from profuser.artifacts import Artifact, Manifest
from profuser.config import identity
from profuser.errors import UserError
from profuser.recipe.models import Recipe
from profuser.run import STAGES, FusionRun
from profuser.run_lock import RunLock
from profuser.tracking import RunHandle, Tracker, artifact_root, tracking_uri
from ray_jobs.cluster import connected
from ray_jobs.metrics import at_work, refresh
from ray_jobs.progress import console
from ray_jobs.run_checks import (
    check_fits_recipe,
    check_inputs_finished,
    check_only,
    check_storage,
    check_target,
    check_tokenizers,
    is_part,
    stage_index,
    stage_of,
)
from ray_jobs.runs import RECIPE
from ray_jobs.shards import Draining
from ray_jobs.summary import Summary

Job = tuple[Artifact, Callable[[RunHandle, Draining], Manifest]]
"""An artifact and what makes it, given the MLflow run of its stage, and what to call once its last rows are being worked on."""


def run_pipeline(
    recipe: Recipe,
    redo: Sequence[str] = (),
    until: str = STAGES[-1],
    only: str | None = None,
    after_stage: Callable[[str, FusionRun], None] = lambda stage, run: None,
) -> FusionRun:
    """Runs whatever of a fusion is not done yet.

    Args:
        recipe: what to run.
        redo: stages whose artifacts are deleted first, with all that follows from them.
        until: last stage to run; a later call goes on from there.
        only: run this stage (`fuse`) or this part of one (`collect/llama`) alone; what it stands on must be finished.
        after_stage: called when all parts of a stage are finished.

    Raises:
        UserError: an input is missing, a stage has no such name, a tokenizer cannot be aligned, the recipe no longer fits
            what was made, the storage cannot be written, or another driver is at work on the run.
        ProfuserError: a stage failed, or another driver has taken the run over.
    """
    run = FusionRun(recipe)
    last = stage_index(until, "--until")
    check_storage(recipe.storage)
    run.check_inputs()
    if only:
        check_only([artifact.stage for artifact, _ in jobs(run)], only, redo)
    with RunLock(run.folder, on_heartbeat=refresh) as lock:
        delete_stages(run, redo)
        check_fits_recipe(run)
        chosen = [job for job in jobs(run) if _is_asked_for(job[0].stage, last, only)]
        if only:
            check_inputs_finished(run, only, [artifact for artifact, _ in chosen])
        if run.select().manifest() is None:
            check_tokenizers(run)
        if run.fuse().manifest() is None:
            check_target(run)
        _run_stages(run, lock, chosen, after_stage)
    return run


def _is_asked_for(name: str, last: int, only: str | None) -> bool:
    return is_part(name, only) if only else STAGES.index(stage_of(name)) <= last


def _run_stages(
    run: FusionRun, lock: RunLock, chosen: Sequence[Job], after_stage: Callable[[str, FusionRun], None]
) -> None:
    recipe = run.recipe
    run.folder.write_bytes(RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
    uri = tracking_uri(recipe.storage)
    console.print(f"run {recipe.name}: {run.folder.uri}", markup=False)
    tracker = Tracker.open(
        uri, recipe.tracking.experiment, recipe.name, identity(recipe), artifact_root(recipe.storage)
    )
    summary = Summary(run, lock, [artifact for artifact, _ in jobs(run)])
    from ray_jobs.side_by_side import run_side_by_side

    try:
        with connected():
            for stage, parts in groupby(chosen, lambda job: stage_of(job[0].stage)):
                works = [partial(_run_part, tracker, summary, *part) for part in parts]
                run_side_by_side(works, _at_once(stage, run))
                after_stage(stage, run)
        if recipe.tracking.registered_model and summary.is_finished():
            version = tracker.register(recipe.tracking.registered_model, (run.fuse().folder / "model").uri)
            console.print(f"registered: models:/{recipe.tracking.registered_model}/{version}", markup=False)
    except BaseException:
        summary.end("failed")
        tracker.end(failed=True)
        raise
    summary.end("finished" if summary.is_finished() else "stopped")
    tracker.end()


def _at_once(stage: str, run: FusionRun) -> int:
    """Parts of a stage that may run at one time: of most, each begins when the one before is done."""
    from ray_jobs.benchmarks import benchmarks_at_once
    from ray_jobs.side_by_side import judges_at_once, sources_at_once

    if stage == "benchmarks":
        return benchmarks_at_once(run)
    if stage in ("rewards", "judge"):
        return judges_at_once(run.recipe)
    return sources_at_once(run.recipe) if stage in ("collect", "signals") else 1


def jobs(run: FusionRun) -> list[Job]:
    """Every artifact of a run with what makes it, in order."""
    # Imported here: `--help` and `plan` load no engine, no trainer, no Ray.
    from ray_jobs.benchmarks import measure
    from ray_jobs.collect import collect
    from ray_jobs.evaluate import evaluate
    from ray_jobs.fuse import fuse
    from ray_jobs.judge import judge
    from ray_jobs.prepare import prepare
    from ray_jobs.report import report
    from ray_jobs.rewards import score_answers
    from ray_jobs.selection import select
    from ray_jobs.signals import signals

    recipe = run.recipe
    lazy = recipe.sources if recipe.collect.signals == "lazy" else ()
    out: list[Job] = [(run.corpus(), lambda *_: prepare(run))]
    out += [(run.collect(source), lambda _, draining, s=source: collect(run, s, draining)) for source in recipe.sources]
    out += [
        (run.rewards(reward), lambda _, draining, r=reward: score_answers(run, r, draining))
        for reward in recipe.rewards
    ]
    out += [(run.signals(source), lambda _, draining, s=source: signals(run, s, draining)) for source in lazy]
    out += [(run.select(), lambda *_: select(run)), (run.fuse(), lambda handle, _: fuse(run, handle))]
    out += [(run.evaluate(name), lambda *_, n=name: evaluate(run, n)) for name in run.evaluated()]
    pairs = [(name, benchmark) for name in run.evaluated() for benchmark in recipe.evaluate.benchmarks]
    out += [(run.benchmark(*pair), lambda *_, p=pair: measure(run, *p)) for pair in pairs]
    judges = recipe.rewards if recipe.evaluate.judged else ()
    out += [(run.judge(reward), lambda _, draining, r=reward: judge(run, r, draining)) for reward in judges]
    return [*out, (run.report(), lambda handle, _: report(run, handle))]


def _run_part(
    tracker: Tracker,
    summary: Summary,
    artifact: Artifact,
    job: Callable[[RunHandle, Draining], Manifest],
    draining: Draining,
) -> None:
    """Makes one artifact, unless it is there."""
    manifest = artifact.manifest()
    if manifest is not None:
        console.print(f"{artifact.stage}: done before", markup=False)
        summary.stage(artifact.stage, "finished", manifest)
        return
    summary.stage(artifact.stage, "running")
    with tracker.stage(artifact.stage) as handle, at_work(artifact):
        try:
            manifest = job(handle, draining)
        except BaseException:
            summary.stage(artifact.stage, "failed")
            raise
        # Names of their own: at one of training's curves, a last value without a step would be drawn as its first.
        results = manifest.counts | manifest.metrics | {"seconds": manifest.seconds}
        handle.log_metrics({f"stage/{key}": value for key, value in results.items()})
    if artifact.stage == "prepare/train":
        config = manifest.config["corpus"]
        tracker.log_dataset("corpus", config["path"], manifest.config["digests"]["corpus"])
    if artifact.stage.startswith("evaluate/"):
        name = artifact.stage.removeprefix("evaluate/")
        tracker.parent.log_metrics({f"{name}/{key}": value for key, value in manifest.metrics.items()})
    if artifact.stage.startswith("benchmarks/"):
        tracker.parent.log_metrics({artifact.stage.removeprefix("benchmarks/"): manifest.metrics["score"]})
    summary.stage(artifact.stage, "finished", manifest)


def delete_stages(run: FusionRun, redo: Sequence[str]) -> None:
    """Deletes the artifacts of these stages and of all that follow; the only place where finished work is taken away."""
    for stage in redo:
        stage_index(stage, "--redo")
        for artifact in run.artifacts(stage):
            if not artifact.folder.uri.startswith(f"{run.folder.uri}/"):
                raise UserError(
                    f"--redo {stage}: {artifact.folder.uri} is another run's, which this one reuses; redo it there"
                )
    if redo:
        for stage in STAGES[min(stage_index(name, "--redo") for name in redo) :]:
            (run.folder / stage).delete()


if __name__ == "__main__":
    from ray_jobs.stage_script import run_all

    run_all()
