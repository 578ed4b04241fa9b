"""The output layer of a language model, as the fusion loss computes it: everything from the last hidden states to the logits.

Legend: B examples, S tokens, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from profuser.errors import UserError
from profuser.models.classes import backbone

PROBE_TOKENS = 8


class OutputHead(NamedTuple):
    """`logits = cap(scale * (hidden @ weight.T + bias))`, where `cap(z) = softcap * tanh(z / softcap)` or nothing."""

    weight: Float[Tensor, "V D"]
    """Output embedding; may be tied to the input embedding."""
    bias: Float[Tensor, "V"] | None = None
    scale: float = 1.0
    """`logit_scale` of Cohere; one over `logits_scaling` of Granite."""
    softcap: float | None = None
    """`final_logit_softcapping` of Gemma."""

    @classmethod
    def of(cls, model: Any) -> "OutputHead":
        """Reads the head of a Hugging Face causal language model from its output embedding and its config."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        # The model's scale takes precedence: MPT's config names one that its code does not apply.
        scale = float(getattr(model, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, getattr(layer, "bias", None), scale, float(softcap) if softcap else None)

    def logits(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Returns all logits at once, for checks."""
        logits = hidden @ self.weight.T
        logits = (logits if self.bias is None else logits + self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


@torch.no_grad()
def head_fits(model: Any, device: torch.device | None = None) -> bool:
    """Returns whether the head's logits are the model's own, on a few tokens."""
    vocab_size = model.get_output_embeddings().weight.shape[0]
    ids = torch.arange(PROBE_TOKENS, device=device or model.device)[None] * 7 % vocab_size
    was_training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits.float()
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    rebuilt = OutputHead.of(model).logits(hidden).float()
    model.train(was_training)
    return own.shape == rebuilt.shape and torch.allclose(own, rebuilt, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


def check_head(model: Any, path: str, device: torch.device | None = None) -> None:
    """Raises UserError if the architecture transforms its logits in a way that the fusion loss does not support."""
    if not head_fits(model, device):
        kind = type(model).__name__
        raise UserError(
            f"target.model: {path}: {kind} changes its logits in a way that the fusion loss does not support; "
            "train another target, or add it to profuser/models/output_head.py"
        )
