"""Checks of the target on a few tokens, before training starts."""

from typing import Any

import numpy as np
import torch

from profuser.errors import ArtifactError, UserError
from profuser.training.attention import Boundaries
from profuser.training.output_head import check_head
from profuser.training.step import FusionModule

PROBE_LENGTHS = (5, 7)
"""Tokens of the two examples that are packed for the check."""
MAX_DIFFERENCE = 0.1
"""Relative difference of hidden states. Measured: up to 0.02 for bfloat16 in 32 layers, over 0.5 for a model that mixes."""


def check_target(module: FusionModule, path: str, packing: bool) -> None:
    """Raises UserError if the fusion loss does not support the target's output layer, or packed examples would mix."""
    check_head(module.model, path, module.device)
    if packing:
        check_packing(module, path)


def check_vocabulary(model: Any, vocab_size: int, path: str) -> None:
    """Raises ArtifactError if the width of the target's logits is not the vocabulary size of the examples."""
    width = model.get_output_embeddings().weight.shape[0]
    if width != vocab_size:
        raise ArtifactError(
            f"target.model: {path} has {width:,} logits, but the selected examples are for {vocab_size:,}: "
            "the model has changed since; rebuild the examples with --redo select"
        )


@torch.no_grad()
def check_packing(module: FusionModule, path: str) -> None:
    """Compares the hidden states of two concatenated examples with those of each one separately.

    Raises:
        UserError: they differ: one example sees the other, or its positions count from the start of the sequence.
    """
    device, vocab_size = module.device, module.model.get_output_embeddings().weight.shape[0]
    ids = torch.arange(sum(PROBE_LENGTHS), device=device)[None] * 11 % vocab_size
    was_training = module.training
    module.eval()
    separate = [_hidden(module, part, [part.shape[1]]) for part in ids.split(PROBE_LENGTHS, dim=1)]
    whole = torch.cat([part.reshape(-1, part.shape[-1]) for part in separate])
    packed = _hidden(module, ids, PROBE_LENGTHS).reshape(whole.shape)
    module.train(was_training)
    difference = float((packed - whole).abs().max() / whole.abs().max())
    if not difference < MAX_DIFFERENCE:
        raise UserError(
            f"target.model: {path}: {type(module.model).__name__} cannot keep packed examples separate (hidden states differ by "
            f"{difference:.1%}); set fuse.packing: false"
        )


def _hidden(module: FusionModule, ids: torch.Tensor, lengths: Any) -> torch.Tensor:
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    boundaries = Boundaries.of(positions, ids.device)
    return module.hidden(ids, torch.from_numpy(positions).to(ids.device), boundaries).float()
