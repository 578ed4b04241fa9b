"""Checkpoints of a running fusion (sharded, by torch.distributed.checkpoint), and the Hugging Face folder at its end."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from profuser.errors import ArtifactError
from profuser.training.loop import Trainer

PROGRESS = "progress.json"


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Writes this worker's part of model and optimizer; the first worker adds the step and the history."""
    folder.mkdir(parents=True, exist_ok=True)
    model, optimizer = get_state_dict(trainer.module, trainer.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    if not dist.is_initialized() or dist.get_rank() == 0:
        progress = {"step": trainer.step, "skipped": trainer.skipped, "history": trainer.history}
        (folder / PROGRESS).write_text(json.dumps(progress))


def load_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Brings model, optimizer and position back; the number of workers may differ from when it was saved."""
    try:
        progress = json.loads((folder / PROGRESS).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"checkpoint {folder}: {error}") from None
    model, optimizer = get_state_dict(trainer.module, trainer.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    set_state_dict(
        trainer.module, trainer.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    trainer.step, trainer.skipped, trainer.history = progress["step"], progress["skipped"], progress["history"]


def export(trainer: Trainer, target: str, revision: str | None, folder: Path) -> None:
    """Writes the fused model as a plain Hugging Face folder: weights in the target's own type, tokenizer, generation settings.

    Every worker takes part in gathering the weights; the first one writes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.module, options=options)
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(target, revision=revision)
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    with torch.no_grad():
        model.load_state_dict(own, strict=False)
    missing = set(model.state_dict()) - set(own)
    tied = set(model.all_tied_weights_keys or ())
    if missing - tied:
        raise ArtifactError(f"fused model: no weights for {sorted(missing - tied)[:3]}")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(target, revision=revision).save_pretrained(folder)
