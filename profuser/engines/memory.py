"""Estimates the memory that a process with an engine takes on a CPU."""

from profuser.models.checkpoint import Checkpoint

PROCESS_BYTES = 0.75 * 2**30
"""Memory of the process without a model: PyTorch, vLLM and their threads."""
TOKEN_BYTES = 6 << 10
"""Memory per entry of the vocabulary: the tokenizer, and the output layer in vLLM's layout."""
LOGITS_TOKENS = 512
"""Tokens of a long row, whose logits are held in float32 while they are read."""
LOGITS_COPIES = 3
"""Logits, their log-probabilities, and what the sorting of candidates takes."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Size of a number by type."""


def engine_bytes(checkpoint: Checkpoint, dtype: str, kv_cache_gib: float) -> int | None:
    """Returns the estimated memory of a process with an engine; None if the size of its weights is unknown.

    Args:
        checkpoint: the model.
        dtype: type in which it runs.
        kv_cache_gib: size of the KV cache.
    """
    if checkpoint.weights_bytes is None:
        return None
    stored = BYTES.get(checkpoint.dtype, 4)
    scale = 1.0 if checkpoint.is_quantized else BYTES.get(dtype, stored) / stored
    logits = LOGITS_COPIES * LOGITS_TOKENS * checkpoint.vocab_size * BYTES["float32"]
    weights = scale * checkpoint.weights_bytes
    return round(PROCESS_BYTES + TOKEN_BYTES * checkpoint.vocab_size + weights + kv_cache_gib * 2**30 + logits)
