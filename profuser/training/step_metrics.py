"""Metrics of one update, and the utilisation of the device.

Model FLOPs (PaLM's definition, arXiv 2204.02311, appendix B: recomputation does not count), forward and backward, for tokens n_i of
example i, P parameters without embeddings, L layers of width D, V vocabulary, R response tokens:

    6 P sum(n_i)  +  12 L D sum(n_i^2)  +  6 V D R

The output layer runs only at response tokens. With frozen weights (LoRA) no gradient of P is computed: 4 P.
"""

import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

PEAK_TFLOPS = {
    "A100": 312,
    "A800": 312,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "L40S": 362,
    "L4": 121,
}
"""Dense bfloat16 TFLOPs of a device, from its data sheet, by a part of its name; the first match counts."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one update. Losses are in nats per response token of their mode; None for a mode without weight, or an update
    without pairs."""

    step: int
    num_steps: int
    stage: int
    """Index of the schedule's piece (not a stage of the pipeline), from 0."""
    learning_rate: float
    weight_inference: float
    weight_training: float
    ce_inference_nats: float | None
    kl_inference_nats: float | None
    ce_training_nats: float | None
    kl_training_nats: float | None
    grad_norm: float
    tokens: int
    """Trained response tokens."""
    sequence_tokens: int
    """Prompt and response tokens."""
    tokens_per_second: float
    """Prompt and response tokens, over all workers."""
    model_tflops: float
    """Model FLOPs per second of one worker, in units of 1e12."""
    model_flops_utilisation: float | None
    """Share of the device's peak; None if the peak is unknown."""
    memory_gib: float
    """Peak memory of the first worker so far: of its device, or of the process if it has none."""
    skipped_steps: int
    pairs: float | None = None
    """Number of pairs of preference mode."""
    weight_preference: float | None = None
    preference_nats: float | None = None
    """Mean loss of the pairs."""
    preference_lead: float | None = None
    """Mean lead of the better answer, in reward (scaled log-probability against the reference)."""
    preference_accuracy: float | None = None
    """Share of the pairs whose better answer leads, 0 to 1."""
    ce_preferred_nats: float | None = None
    """Cross-entropy of the better answers. If it rises, the target unlearns both."""
    ce_rejected_nats: float | None = None
    weight_on_policy: float | None = None
    ce_on_policy_nats: float | None = None
    """Cross-entropy of the target's own answers, which is not trained: it falls as the target becomes surer of what it says."""
    kl_on_policy_nats: float | None = None

    def known(self) -> dict[str, float]:
        """Returns the values that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ModelFlops:
    """Coefficients of a target's model FLOPs."""

    per_token: float
    per_squared_length: float
    per_response_token: float

    @classmethod
    def of(cls, model: Any) -> "ModelFlops":
        """Computes them from the parameters and the config of a Hugging Face model (sharded or not)."""
        config = model.config.get_text_config()
        tables = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
        body = [p for p in model.parameters() if id(p) not in tables]
        frozen = sum(p.numel() for p in body if not p.requires_grad)
        trained = sum(p.numel() for p in body if p.requires_grad)
        vocab_size, width = model.get_output_embeddings().weight.shape
        return cls(6.0 * trained + 4.0 * frozen, 12.0 * config.num_hidden_layers * width, 6.0 * vocab_size * width)

    def update(self, lengths: Any, num_responses: int) -> float:
        """Returns the FLOPs of an update: `lengths [E]` tokens of each example, and the number of all response tokens."""
        attention = self.per_squared_length * float((lengths.astype(float) ** 2).sum())
        return self.per_token * float(lengths.sum()) + attention + self.per_response_token * num_responses


def peak_tflops(device: torch.device) -> float | None:
    """Returns a GPU's dense bfloat16 TFLOPs by its name; None if it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for part, peak in PEAK_TFLOPS.items() if part in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """Returns the peak memory so far: tensors of a GPU, or the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)
