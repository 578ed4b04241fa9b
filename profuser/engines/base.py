"""What an engine takes and gives: requests to answer or to teacher-force, responses with their top-k distributions.

Legend: T response tokens, K top-k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from profuser.recipe.models import GenerationConfig
from profuser.signals.codec import TopK


@dataclass(frozen=True)
class Request:
    """A rendered prompt; with `response_ids` that response is teacher-forced, without it one is generated."""

    prompt_ids: list[int]
    response_ids: list[int] | None = None
    max_tokens: int = 0
    """Longest answer where one is generated."""


@dataclass(frozen=True)
class Response:
    """A response (given or generated, end-of-turn token included) and the source's distributions along it."""

    ids: Int[np.ndarray, "T"]
    logprobs: Float[np.ndarray, "T"]
    """Natural log-probability of each token of `ids`, at temperature 1."""
    topk: TopK
    finish_reason: str
    """`stop` where the model ended its turn, `length` where it was cut; `given` for a teacher-forced response."""


@runtime_checkable
class SourceEngine(Protocol):
    """A model that answers and scores. One lives in each actor."""

    tokenizer: Any
    max_model_len: int
    """Longest prompt plus response, in tokens."""
    vocab_size: int
    """Width of the logits, which may exceed the tokenizer's size."""

    def run(self, requests: Sequence[Request], generation: GenerationConfig, top_k: int, seed: int) -> list[Response]:
        """Runs all requests, of both kinds mixed, and gives their responses in order."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...
