"""Checks of the target on a few tokens: on a small random model before anything is paid, and on the target itself at set-up."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from profuser.errors import ArtifactError, UserError, one_line
from profuser.models.output_head import check_head
from profuser.recipe.fusing import FuseConfig
from profuser.training.attention import Boundaries
from profuser.training.small import small_models
from profuser.training.step import FusionModule

PROBE_LENGTHS = (17, 23)
"""Tokens of the two examples that are packed for the check."""
REMEDY = "set fuse.packing: false"
CANNOT_RUN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What the code of an architecture raises for inputs that it does not support."""


class Tolerance(NamedTuple):
    """Relative differences of hidden states that are rounding."""

    mixing: float
    """Between two packs of one shape. Measured in float32: 0 for architectures that pack, over 0.3 for a small one that mixes."""
    alone: float
    """Between an example in a pack and alone, which multiplies other shapes. Measured: up to 0.02 for bfloat16 in 32 layers."""


EXACT, HALF = Tolerance(1e-4, 1e-3), Tolerance(0.02, 0.1)


def check_target(module: FusionModule, path: str, packing: bool) -> None:
    """Raises UserError if the fusion loss does not support the target's output layer, or packed examples would mix."""
    check_head(module.model, path, module.device)
    if packing:
        check_packing(module, path)


def check_architecture(model_config: Any, config: FuseConfig, path: str) -> str | None:
    """Tries a target's architecture on a small random model of its own config, on the CPU.

    Returns:
        Why it could not be tried; None if it was. Training then checks the target itself when it starts.

    Raises:
        UserError: as `check_target`; or the architecture cannot be run on tokens alone.
    """
    attention = config.attention if config.attention in ("auto", "eager", "sdpa") else "auto"
    config = config.model_copy(update={"attention": attention, "lora": None})
    reason: str | None = "it is too large"
    try:
        for model in small_models(model_config):
            try:
                _hidden(FusionModule(model, config.model_copy(update={"packing": False})), _ids(model), PROBE_LENGTHS)
            except CANNOT_RUN as error:
                # It is narrower than the architecture allows, or cannot be run at all.
                reason = one_line(error)
                continue
            check_target(FusionModule(model, config), path, config.packing)
            return None
    except CANNOT_RUN as error:
        reason = one_line(error)
    return f"target.model: {path}: packing and output layer could not be tried on a small model of its config: {reason}"


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
    """Compares the second of two concatenated examples with itself after another first example, and with itself alone.

    Raises:
        UserError: they differ by more than rounding: it sees the first example, or its positions count from the start of the
            sequence; or the architecture cannot be given packed examples.
    """
    was_training, kind = module.training, type(module.model).__name__
    module.eval()
    ids = _ids(module.model).to(module.device)
    other, second = ids.clone(), ids[:, PROBE_LENGTHS[0] :]
    other[:, : PROBE_LENGTHS[0]] = ids.flip(1)[:, : PROBE_LENGTHS[0]]
    try:
        one, another = (_hidden(module, pack, PROBE_LENGTHS) for pack in (ids, other))
        alone = _hidden(module, second, PROBE_LENGTHS[1:])
    except CANNOT_RUN as error:
        reason = one_line(error, 200)
        raise UserError(f"target.model: {path}: {kind} cannot be given packed examples ({reason}); {REMEDY}") from error
    finally:
        module.train(was_training)
    allowed = EXACT if one.dtype == torch.float32 else HALF
    one, another = (pack[:, PROBE_LENGTHS[0] :] for pack in (one, another))
    for found, limit, why in (
        (_difference(another, one), allowed.mixing, "with another first example, the second's hidden states differ by"),
        (_difference(alone, one), allowed.alone, "packed and alone, an example's hidden states differ by"),
    ):
        if not found < limit:
            raise UserError(
                f"target.model: {path}: {kind} cannot keep packed examples separate ({why} {found:.1%}); {REMEDY}"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def _ids(model: Any) -> Tensor:
    vocab_size = model.get_output_embeddings().weight.shape[0]
    return torch.arange(sum(PROBE_LENGTHS))[None] * 11 % vocab_size


def _hidden(module: FusionModule, ids: Tensor, lengths: Any) -> Tensor:
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    boundaries = Boundaries.of(positions, ids.device)
    return module.hidden(ids, torch.from_numpy(positions).to(ids.device), boundaries)
