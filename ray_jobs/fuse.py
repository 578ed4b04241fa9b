"""Stage `fuse`: Ray Train runs the training loop on sharded workers; the result is a Hugging Face folder."""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayTaskError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from profuser.artifacts import Artifact, Manifest
from profuser.errors import ProfuserError, TrainingError
from profuser.recipe.models import Recipe
from profuser.run import FusionRun
from profuser.storage import Folder
from profuser.tracking import RunHandle
from profuser.training.loop import StepMetrics
from ray_jobs.cluster import check_fits, total_gpus
from ray_jobs.progress import Counter
from ray_jobs.shards import finish

MODEL, METRICS = "model", "metrics.jsonl"
POLL_SECONDS = 1.0


def fuse(run: FusionRun, handle: RunHandle) -> Manifest:
    """Runs the stage; a second attempt continues from the last checkpoint.

    Raises:
        TrainingError: training failed more often than `fuse.workers.max_failures` allows.
    """
    start = time.monotonic()
    output, recipe = run.fuse(), run.recipe
    workers = recipe.fuse.workers
    use_gpu = total_gpus() >= workers.num_workers if workers.use_gpu is None else workers.use_gpu
    check_fits("fuse", workers.num_cpus, float(use_gpu), workers.num_workers)
    board = ray.remote(num_cpus=0)(_Board).remote()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "recipe": recipe,
            "select": run.select(),
            "target": run.model(recipe.target).path,
            "vocab_size": run.vocab_size("target.model"),
            "output": output.folder,
            "handle": handle,
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": workers.num_cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # Of this fingerprint: a run that is redone under other settings does not resume from foreign checkpoints.
            name=f"train-{output.fingerprint}",
            storage_path=output.folder.uri,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=recipe.fuse.keep_checkpoints),
        ),
    )
    try:
        with _shown(board):
            trainer.fit()
    except (ray.train.TrainingFailedError, RayTaskError) as error:
        raise _own_failure(error) from error
    history = _read_history(output)
    last = history[-1]
    counts = {"steps": len(history), "tokens": sum(int(step["tokens"]) for step in history)}
    losses = {name: value for name, value in last.items() if name.endswith("_nats")}
    return finish(output, [counts], time.monotonic() - start, skipped_steps=last["skipped_steps"], **losses)


def _own_failure(error: BaseException) -> ProfuserError:
    """One of our errors from the workers, as it was raised; else a line with the remedy."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, ProfuserError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    text = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return TrainingError(f"fuse: training failed: {text}; run again to continue from the last checkpoint")


def _read_history(output: Artifact) -> list[dict[str, float]]:
    lines = output.folder.read_bytes(METRICS).decode().splitlines()
    return [json.loads(line) for line in lines]


def _train_worker(config: dict[str, Any]) -> None:
    """What every worker of Ray Train runs."""
    import torch

    from profuser.training.checkpoint import export, load_checkpoint
    from profuser.training.examples import ExampleStore
    from profuser.training.loop import Trainer, load_target

    recipe: Recipe = config["recipe"]
    output: Folder = config["output"]
    torch.manual_seed(recipe.seed)
    device = str(ray.train.torch.get_device())
    store = ExampleStore(config["select"].tables(), recipe.collect.top_k, config["vocab_size"], recipe.fuse.max_tokens)
    model = load_target(config["target"], recipe.target.revision)
    trainer = Trainer(model, store, recipe.fuse, recipe.seed, recipe.collect.top_k, device)
    checkpoint = ray.train.get_checkpoint()
    is_first = ray.train.get_context().get_world_rank() == 0
    if checkpoint:
        with checkpoint.as_directory() as folder:
            load_checkpoint(trainer, Path(folder))
    if is_first:
        config["handle"].log_metrics({"examples": len(store.examples), "cut_examples": store.num_cut})
        config["board"].begin.remote(trainer.step, trainer.plan.num_steps)
    trainer.run(_Logger(config["handle"], config["board"], is_first), _report_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export(trainer, config["target"], recipe.target.revision, Path(folder))
        if is_first:
            (output / MODEL).upload(Path(folder))
            lines = "".join(json.dumps(step) + "\n" for step in trainer.history)
            output.write_bytes(METRICS, lines.encode())
    # The other workers wait for the first one to have written.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class _Logger:
    """Sends the first worker's metrics to MLflow and to the driver's progress line."""

    def __init__(self, handle: RunHandle, board: Any, active: bool):
        self.handle, self.board, self.active = handle, board, active

    def __call__(self, metrics: StepMetrics) -> None:
        if self.active:
            self.handle.log_metrics(metrics.known(), metrics.step)
            self.board.post.remote(metrics)


class _Board:
    """An actor that holds how far the first worker is, for the driver to show."""

    def __init__(self):
        self.plan: tuple[int, int] | None = None
        self.last: StepMetrics | None = None

    def begin(self, step: int, num_steps: int) -> None:
        """Sets where training begins, and how many updates there are in all."""
        self.plan = (step, num_steps)

    def post(self, metrics: StepMetrics) -> None:
        """Sets what the last update did."""
        self.last = metrics

    def read(self) -> tuple[tuple[int, int] | None, StepMetrics | None]:
        """The plan and the last update; None before there are any."""
        return self.plan, self.last


@contextmanager
def _shown(board: Any) -> Iterator[None]:
    """Shows, while the body runs, what stands on the board."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(board: Any, ended: threading.Event) -> None:
    plan: Any = None
    while plan is None and not ended.wait(POLL_SECONDS):
        plan, _ = ray.get(board.read.remote())
    if plan is None:
        return
    with Counter("fuse", plan[1], "steps", plan[0]) as counter:
        while not ended.wait(POLL_SECONDS):
            _, last = ray.get(board.read.remote())
            if last is not None:
                losses = " ".join(f"{k[:-5]} {v:.3f}" for k, v in last.known().items() if k.endswith("_nats"))
                skipped = f", {last.skipped_steps} skipped" if last.skipped_steps else ""
                counter.reach(last.step + 1, f"{losses} nats/token, {last.tokens_per_second:,.0f} tokens/s{skipped}")


def _report_checkpoint(trainer: Any) -> None:
    from profuser.training.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        ray.train.report(trainer.history[-1], checkpoint=Checkpoint.from_directory(folder))
