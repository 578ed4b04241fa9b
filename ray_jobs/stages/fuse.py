"""Stage `fuse`: Ray Train runs the training loop on sharded workers; the result is a Hugging Face model folder."""

import json
import time
from typing import Any

import ray
import ray.train
from ray.exceptions import RayTaskError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.tracking import RunHandle
from profuser.errors import ArtifactError, ProfuserError, TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.run.fusing_artifacts import TRAINING_METRICS
from profuser.run.fusion_run import FusionRun
from profuser.training.batches import UpdatePlan
from profuser.training.checkpoint import PROGRESS
from profuser.training.examples import LIGHT_COLUMNS, ExampleIndex, ExampleReader
from profuser.training.loop import HELDOUT
from ray_jobs.runtime.cluster import check_fits, total_gpus
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.shards import finish
from ray_jobs.runtime.stalls import describe_workers
from ray_jobs.training.board import TrainingMonitor
from ray_jobs.training.worker import STEP_METRIC, WorkerTask, train_worker

PLANNED = "planned_steps"
"""Metric of a run with several rounds: updates of all of them."""


def fuse(run: FusionRun, round_number: int | None = None, *, handle: RunHandle) -> Manifest:
    """Runs the stage for one of its rounds, by default the last; a second attempt continues from the last checkpoint, and a later
    round from that of the round before.

    Raises:
        TrainingError: training failed more than `fuse.workers.max_failures` times.
        SystemExit: SIGTERM was received; a checkpoint was written.
    """
    start, began = time.monotonic(), time.time()
    output, recipe = run.fuse(round_number), run.recipe
    round_number = round_number or recipe.fuse.num_rounds
    scaling, torch_config = _scaling(recipe.fuse)
    select, top_k = run.select(round_number), recipe.collect.top_k
    index = ExampleIndex.build(_light_tables(select), recipe.fuse.max_tokens, recipe.fuse.weighting)
    before = run.fuse(round_number - 1) if round_number > 1 else None
    plan = UpdatePlan(index, recipe.fuse, recipe.training_seed, round_number, before and _planned(before))
    handle.log_metrics(_index_facts(plan))
    if line := index.cut_words(recipe.fuse.max_tokens):
        print_line(f"fuse: {line}")
    wanted = {"CPU": recipe.fuse.workers.num_cpus, "GPU": float(bool(scaling.use_gpu))}
    watch = TrainingMonitor(output, describe_workers(output, began, wanted, "workers"))
    task = WorkerTask(
        recipe=recipe,
        plan=ray.put(plan),
        reader=ExampleReader(select.read_shard, top_k, run.vocab_size("target.model"), recipe.fuse.max_tokens),
        target=run.model(recipe.target).path,
        output=output,
        begins_at=_last_checkpoint(before) if before else None,
        exports_best=recipe.fuse.export == "best" and round_number == recipe.fuse.num_rounds,
        began=began,
        num_devices=1.0 if scaling.use_gpu else recipe.fuse.workers.num_cpus,
        handle=handle,
        board=watch.board,
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=scaling,
        torch_config=torch_config,
        run_config=RunConfig(
            name=_training_folder(output),
            storage_path=output.folder.uri,
            failure_config=FailureConfig(max_failures=recipe.fuse.workers.max_failures),
            checkpoint_config=_kept(recipe.fuse, plan),
        ),
    )
    try:
        with watch.running():
            trainer.fit()
    except (ray.train.TrainingFailedError, RayTaskError) as error:
        raise _own_failure(error) from error
    history = _read_history(output)
    if len(history) < plan.end:
        raise SystemExit(143)
    # Logs the steps that the workers could not log.
    handle.log_missing(history, STEP_METRIC)
    counts = {"steps": len(history), "tokens": sum(int(step["tokens"]) for step in history)}
    last = {k: v for k, v in history[-1].items() if k.endswith("_nats") or k.startswith(HELDOUT)}
    last |= {PLANNED: float(plan.num_steps)} if recipe.fuse.num_rounds > 1 else {}
    return finish(output, [counts], time.monotonic() - start, skipped_steps=history[-1]["skipped_steps"], **last)


def _training_folder(output: Artifact) -> str:
    """Returns Ray Train's folder in the artifact. Named by fingerprint: a run redone under other settings must not resume from
    foreign checkpoints."""
    return f"train-{output.fingerprint}"


def _planned(before: Artifact) -> int:
    """Returns the updates of all rounds, as the first one planned them."""
    manifest = before.manifest()
    assert manifest is not None
    return int(manifest.metrics[PLANNED])


def _last_checkpoint(before: Artifact) -> str:
    """Returns the folder or URI of the checkpoint with which a round ended; raises ArtifactError if it is no longer there."""
    manifest, folder = before.manifest(), before.folder / _training_folder(before)
    for name in sorted(folder.names(), reverse=True):
        place = folder / name
        if place.exists(PROGRESS) and manifest and place.read_json(PROGRESS)["step"] == manifest.counts["steps"]:
            return place.uri
    raise ArtifactError(
        f"{before.stage}: {folder.uri} has no checkpoint of the round's end; rebuild it with --redo rounds"
    )


def _scaling(config: FuseConfig) -> tuple[ScalingConfig, TorchConfig]:
    """Returns the workers and their communication backend; GPUs are used if the cluster has enough or the recipe requires them."""
    workers = config.workers
    fewest = workers.min_workers or workers.num_workers
    use_gpu = total_gpus() >= fewest if workers.use_gpu is None else workers.use_gpu
    check_fits("fuse", workers.num_cpus, float(use_gpu), fewest)
    scaling = ScalingConfig(
        num_workers=workers.num_workers if fewest == workers.num_workers else (fewest, workers.num_workers),
        use_gpu=use_gpu,
        resources_per_worker={"CPU": workers.num_cpus} | ({"GPU": 1} if use_gpu else {}),
    )
    return scaling, TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo")


def _kept(config: FuseConfig, plan: UpdatePlan) -> CheckpointConfig:
    """Keeps the best checkpoints by held-out bits per byte where measured; Ray Train also keeps the last one."""
    if len(plan.validation) == 0:
        return CheckpointConfig(num_to_keep=config.keep_checkpoints)
    return CheckpointConfig(
        num_to_keep=config.keep_checkpoints, checkpoint_score_attribute=HELDOUT, checkpoint_score_order="min"
    )


def _light_tables(select: Artifact) -> Any:
    """Yields each shard with its light columns: enough to index the examples, without their distributions."""
    return ((shard, select.read_shard(shard, LIGHT_COLUMNS)) for shard in select.shards())


def _index_facts(plan: UpdatePlan) -> dict[str, float]:
    """Returns counts of examples and rows for MLflow."""
    index = plan.index
    facts = {"examples": float((index.tokens > 0).sum()), "training_rows": float(len(plan.rows))}
    facts |= {"heldout_rows": float(len(plan.validation)), "cut_examples": float(index.num_cut)}
    facts |= {"left_out_examples": float(index.num_left_out), "long_pairs": float(index.num_long_pairs)}
    return facts | {f"examples_of_{name}": float(count) for name, count in index.teachers.items()}


def _own_failure(error: BaseException) -> ProfuserError:
    """Returns the ProfuserError that a worker raised; for any other error, a TrainingError with the remedy."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, ProfuserError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    text = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return TrainingError(f"fuse: training failed: {text}; run again to continue from the last checkpoint")


def _read_history(output: Artifact) -> list[dict[str, float]]:
    lines = output.folder.read_bytes(TRAINING_METRICS).decode().splitlines()
    return [json.loads(line) for line in lines]
