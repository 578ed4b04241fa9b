"""Checkpoints of a running fusion, sharded by torch.distributed.checkpoint and written in the background."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from profuser.errors import ArtifactError
from profuser.training.loop import Trainer

PROGRESS = "progress.json"
COUNTERS = ("step", "cursor", "skipped", "consecutive_skips")
"""Attributes of `Trainer` that a checkpoint restores."""
OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Frozen weights (LoRA) equal the target's: only the adapters are saved."""


class Checkpointer:
    """Writes checkpoints in the background, one at a time."""

    def __init__(self) -> None:
        # A separate gloo group: training's own collectives must not interleave with those of saving.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._last: Future[Any] | None = None

    def save(self, trainer: Trainer, folder: Path) -> Callable[[], None]:
        """Snapshots this worker's shard of model and optimizer, and writes it in the background.

        The first worker adds the progress counters and the history.

        Returns:
            A function that waits until the checkpoint is written and raises any error.
        """
        if self._last is not None:
            self._last.result()
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"process_group": self._group} if self._group else {"no_dist": True}
        last: Any = dcp.async_save(_state(trainer), checkpoint_id=str(folder), **settings)
        self._last = last
        if trainer.rank == 0:
            state = {name: getattr(trainer, name) for name in COUNTERS} | {
                "schedule": trainer.schedule.state_dict(),
                "spikes": trainer.spikes.state_dict(),
                "reference": trainer.reference.state_dict(),
                "history": trainer.history,
            }
            (folder / PROGRESS).write_text(json.dumps(state))
        return lambda: last.result() and None


def load_checkpoint(trainer: Trainer, folder: Path, weights_only: bool = False) -> None:
    """Restores model, optimizer and progress; the number of workers may differ from when it was saved.

    Args:
        trainer: a trainer of the same target and recipe.
        folder: folder of a checkpoint.
        weights_only: do not restore optimizer and progress.

    Raises:
        ArtifactError: the folder holds no complete checkpoint, or one of another model.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text())
        state = _state(trainer)
        dcp.load(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    except (OSError, ValueError, RuntimeError, dcp.api.CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"checkpoint {folder}: {reason}; rebuild the stage with --redo fuse") from None
    set_state_dict(
        trainer.module,
        [] if weights_only else trainer.optimizer,
        model_state_dict=state["model"],
        optim_state_dict={} if weights_only else state["optimizer"],
        options=OPTIONS,
    )
    if weights_only:
        return
    for name in COUNTERS:
        setattr(trainer, name, progress[name])
    trainer.schedule.load_state_dict(progress["schedule"])
    trainer.spikes.load_state_dict(progress["spikes"])
    trainer.history = progress["history"]
    if "reference" in progress:
        trainer.reference.load_state_dict(progress["reference"])


def _state(trainer: Trainer) -> dict[str, Any]:
    model, optimizer = get_state_dict(trainer.module, trainer.optimizer, options=OPTIONS)
    return {"model": model, "optimizer": optimizer}
