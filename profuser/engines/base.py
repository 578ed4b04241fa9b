"""What an engine takes and gives: requests to answer or to teacher-force, responses with their top-k distributions.

Legend: T response tokens, K top-k.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from profuser.recipe.models import GenerationConfig
from profuser.signals.codec import TopK

GREEDY = GenerationConfig()


@dataclass(frozen=True)
class Reading:
    """How rows are put to a source."""

    generation: GenerationConfig
    top_k: int
    """Log-probabilities per position; 0 for the tokens' own alone."""
    seed: int
    """Of the sampling; every row and sample has a seed of its own that follows from it."""
    num_samples: int = 1
    """Answers per row."""


@dataclass(frozen=True)
class Request:
    """A rendered prompt; with `response_ids` that response is teacher-forced, without it one is generated."""

    prompt_ids: list[int]
    top_k: int
    """K, the candidates to keep at each position; 0 for the tokens' own log-probabilities alone."""
    response_ids: list[int] | None = None
    generation: GenerationConfig = GREEDY
    """How an answer is sampled, where one is generated."""
    max_tokens: int = 0
    """Longest answer where one is generated."""
    seed: int = 0
    """Of the sampling."""


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
    """A model that answers and scores. One lives in each actor, and one thread of it calls the engine (`EngineLoop`)."""

    tokenizer: Any
    max_model_len: int
    """Longest prompt plus response, in tokens."""
    vocab_size: int
    """Width of the logits, which may exceed the tokenizer's size."""

    def add(self, number: int, request: Request) -> None:
        """Takes a request; its response comes out of a later `step` under this number."""
        ...

    def step(self) -> list[tuple[int, Response]]:
        """Goes on with what was added, and gives the responses that are finished, in any order."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...
