"""TRL's GOLD: the loss of its own code (`trl.experimental.gold`), where TRL is installed.

Legend: T student and S teacher tokens of a row, V_t and V_s their vocabularies.
"""

import os
import tempfile
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tests.benchmarks.peers.models import Model, Reading

MODES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "hybrid, bayesian merge": {"uld_use_hybrid_loss": True, "uld_token_merge_strategy": "bayesian"},
}
"""Settings of `GOLDConfig` in addition to `use_uld_loss`; all others are defaults (beta 0.5, temperatures 1, adaptive weights)."""


def version() -> str | None:
    """Returns TRL's version, or None if it is not installed."""
    if find_spec("trl") is None:
        return None
    import trl

    return trl.__version__


class Gold:
    """The loss for one pair of models.

    Raises:
        NotImplementedError: TRL finds no byte offsets for a tokenizer, which its trainer asks for first.
    """

    def __init__(self, source: Model, target: Model, mode: str):
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.gold.gold_config import GOLDConfig
        from trl.experimental.gold.gold_trainer import ULDLoss
        from trl.experimental.utils import encode_with_byte_offsets

        for side in (source, target):
            encode_with_byte_offsets(side.tokenizer.backend_tokenizer, ["any"], add_special_tokens=False)
        with tempfile.TemporaryDirectory() as folder:
            config = GOLDConfig(output_dir=folder, use_uld_loss=True, use_cpu=True, bf16=False, **MODES[mode])
        self.loss = ULDLoss(config, student_tokenizer=target.tokenizer, teacher_tokenizer=source.tokenizer)

    def __call__(self, logits: Float[Tensor, "T V_t"], source: Reading, target: Reading) -> Float[Tensor, ""]:
        """Returns the loss of one row; row t of the logits predicts token t.

        Its sequences are one token of the prompt and then the answer, so that its row t of logits is the same as ours; the
        offsets of the tokens are those of the answer's bytes.
        """
        student, teacher = (_inputs(reading) for reading in (target, source))
        padded = [torch.cat([each, each[-1:].detach()]) for each in (logits, source.logprobs)]
        return self.loss(
            *(each[None] for each in padded),
            *(inputs["labels"] for inputs in (student, teacher)),
            *(inputs["ids"] for inputs in (student, teacher)),
            *(inputs["offsets"] for inputs in (student, teacher)),
        )


def _inputs(reading: Reading) -> dict[str, Tensor]:
    ids = torch.tensor([[reading.prompt_ids[-1], *reading.ids.tolist()]])
    labels = ids.clone()
    labels[0, 0] = -100
    pairs = [(0, 0), *zip(reading.spans.starts.clip(0).tolist(), reading.spans.ends.tolist(), strict=True)]
    return {"ids": ids, "labels": labels, "offsets": torch.tensor([pairs])}
