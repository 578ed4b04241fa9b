"""Runs on every worker of stage `fuse`: loads the target, resumes from the last checkpoint, trains, exports."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointUploadMode

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.stage_time import DeviceClock
from profuser.artifacts.tracking import RunHandle
from profuser.models.reference import ModelRef
from profuser.recipe.models import Recipe
from profuser.run.fusing_artifacts import MODEL, TRAINING_METRICS
from profuser.storage.retry import RETRY_SECONDS, with_retry
from profuser.training.examples import ExampleReader
from ray_jobs.training.board import StopRequest
from ray_jobs.training.ingest import Ingest

if TYPE_CHECKING:
    from profuser.training.loop import Record, Trainer

WORST = 1.0e9
"""Held-out score of a checkpoint that was not scored: worse than any measured one."""
STEP_METRIC = "learning_rate"
"""Metric logged with every step; its last step in MLflow marks how far logging got."""


@dataclass(frozen=True)
class WorkerTask:
    """Arguments that the driver sends to every worker."""

    recipe: Recipe
    plan: Any
    """Reference to the UpdatePlan."""
    reader: ExampleReader
    target: str
    """The target's folder or URI, or its name on the Hub."""
    output: Artifact
    begins_at: str | None
    """Folder or URI of the checkpoint with which the round before ended; None in the first."""
    exports_best: bool
    """Whether the best checkpoint is exported, not the last weights."""
    began: float
    """Start of this attempt at the stage, in seconds since the epoch."""
    num_devices: float
    """Number of GPUs that a worker holds, or of CPUs if it has none."""
    handle: RunHandle
    board: Any


def train_worker(config: dict[str, Any]) -> None:
    """Trains and exports; runs on every worker of Ray Train."""
    from profuser.training.export import export
    from profuser.training.loop import Hooks

    task: WorkerTask = config["task"]
    target = ModelRef(task.target, task.recipe.target.revision)
    task = replace(task, target=target.local(setting="target.model", trained=True))
    clock = DeviceClock(task.output, task.num_devices, task.began)
    trainer, ingest = make_trainer(task)
    first = trainer.rank == 0
    if first:
        task.board.begin.remote(trainer.step, trainer.plan.num_steps, str(trainer.module.attention))
    saver = Saver(task, first, clock)
    hooks = Hooks(Logger(task, first), saver, StopRequest(task.board), PreemptionNotice())
    finished = trainer.run(ingest, hooks)
    saver.wait()
    if finished:
        if task.exports_best:
            _load_best(trainer)
        with tempfile.TemporaryDirectory() as folder:
            target = task.recipe.target
            export(trainer.module, task.target, target, task.recipe.template_of(target), Path(folder))
            if first:
                (task.output.folder / MODEL).upload(Path(folder))
    clock.note()
    # The other workers wait until the first one has written the model.
    _barrier()


def make_trainer(task: WorkerTask) -> tuple["Trainer", Ingest]:
    """Returns this worker's trainer, restored from the last checkpoint if there is one, and its ingest."""
    from profuser.training.batches import read_packs
    from profuser.training.checkpoint import load_checkpoint
    from profuser.training.checks import check_vocabulary
    from profuser.training.guards import explain_out_of_memory
    from profuser.training.loop import Trainer
    from profuser.training.reference import Reference
    from profuser.training.target import load_target

    recipe = task.recipe
    plan: Any = ray.get(task.plan)
    device = ray.train.torch.get_device()
    with explain_out_of_memory(recipe.fuse, device):
        module = load_target(task.target, recipe.target.revision, recipe.fuse, device, recipe.training_seed)
    check_vocabulary(module.model, task.reader.vocab_size, task.target)
    context = ray.train.get_context()
    world_size, rank = context.get_world_size(), context.get_world_rank()
    pad_id = module.model.config.get_text_config().pad_token_id or 0
    packs = plan.deal_validation(world_size, rank)
    validation = list(read_packs(plan.index, task.reader, packs, pad_id))
    trainer = Trainer(module, plan, recipe.fuse, recipe.training_seed, validation)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            load_checkpoint(trainer, Path(folder))
    elif task.begins_at:
        with Checkpoint(task.begins_at).as_directory() as folder:
            load_checkpoint(trainer, Path(folder))
        # The pairs' reference is the target at the start of the piece, or of the round.
        trainer.reference = Reference()
    return trainer, Ingest(task.plan, task.reader, world_size, rank, pad_id)


class Saver:
    """Passes checkpoints to Ray Train, which publishes each once all workers' parts are written."""

    def __init__(self, task: WorkerTask, first: bool, clock: DeviceClock):
        from profuser.training.checkpoint import Checkpointer

        self.task, self.first, self.clock = task, first, clock
        self.checkpointer = Checkpointer()
        self._waits: Callable[[], None] = lambda: None

    def __call__(self, trainer: "Trainer") -> None:
        """Starts writing a checkpoint; training continues meanwhile."""
        folder = tempfile.mkdtemp(prefix="profuser-checkpoint-")
        wait = self._waits = self.checkpointer.save(trainer, Path(folder))
        storage: Any = ray.train.get_context().get_storage()

        def upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
            wait()
            # Ray Train copies only once: an unavailable store would cost the steps since the previous checkpoint.
            where = self.task.output.folder / name
            return with_retry(where.uri, lambda: storage.persist_current_checkpoint(checkpoint, name), RETRY_SECONDS)

        ray.train.report(
            _scored(trainer.history[-1]),
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )
        if self.first:
            lines = "".join(json.dumps(record) + "\n" for record in trainer.history)
            self.task.output.folder.write_bytes(TRAINING_METRICS, lines.encode())
        self.clock.note()

    def wait(self) -> None:
        """Waits until the last checkpoint is written."""
        self._waits()


class PreemptionNotice:
    """Detects that Ray has announced the loss of a worker's node (a spot instance, a drained node)."""

    def __init__(self) -> None:
        self.announced: Any = None

    def __call__(self) -> bool:
        """Returns True once per announcement; the workers wait for one another."""
        before, self.announced = self.announced, ray.train.get_preemption_info()
        return self.announced is not None and self.announced != before


def _scored(record: "Record") -> "Record":
    """Scores a checkpoint outside the schedule, which has no held-out score, as worst. (Ray Train's record loses an infinity.)"""
    from profuser.training.loop import HELDOUT

    return {HELDOUT: WORST} | record


def _load_best(trainer: "Trainer") -> None:
    from profuser.training.checkpoint import load_checkpoint
    from profuser.training.loop import HELDOUT

    reported = ray.train.get_all_reported_checkpoints()
    best = min(reported, key=lambda each: each.metrics[HELDOUT])
    with best.checkpoint.as_directory() as folder:
        load_checkpoint(trainer, Path(folder), weights_only=True)


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


class Logger:
    """Sends the first worker's metrics to MLflow and to the driver."""

    def __init__(self, task: WorkerTask, active: bool):
        self.handle, self.board, self.active = task.handle, task.board, active
        self.is_reachable = active and task.handle.is_here()
        self.logged = task.handle.last_step(STEP_METRIC) if self.is_reachable else -1

    def __call__(self, record: "Record") -> None:
        """Logs a record, unless an earlier attempt logged its step."""
        if self.active:
            if self.is_reachable and record["step"] > self.logged:
                self.handle.log_metrics(record, int(record["step"]))
            self.board.post.remote(record)
