"""Defines the engine interface: requests to answer or to teacher-force, and responses with their top-k distributions.

Legend: T response tokens, K top-k.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from profuser.corpus import Message
from profuser.recipe.models import GenerationConfig
from profuser.signals.codec import TopK

GREEDY = GenerationConfig()


@dataclass(frozen=True)
class ReadSettings:
    """Settings for reading rows with a source."""

    generation: GenerationConfig
    top_k: int
    """Log-probabilities per position; 0 for only the tokens' own."""
    seed: int
    """Sampling seed, from which the seed of every row and sample is derived."""
    num_samples: int = 1
    """Answers per row."""


@dataclass(frozen=True)
class Request:
    """A rendered prompt. If `response_ids` is given, that response is teacher-forced; otherwise one is generated."""

    prompt_ids: list[int]
    top_k: int
    """K, candidates to keep at each position; 0 for only the tokens' own log-probabilities."""
    response_ids: list[int] | None = None
    generation: GenerationConfig = GREEDY
    """Sampling settings of a generated answer."""
    max_tokens: int = 0
    """Length limit of a generated answer."""
    seed: int = 0
    """Sampling seed."""
    stop: tuple[str, ...] = ()
    """Texts after which an engine may end a generated answer; it may also generate more."""
    messages: tuple[Message, ...] | None = None
    """The conversation of `prompt_ids` whose answer is generated, for an engine that renders prompts itself."""


@dataclass(frozen=True)
class Usage:
    """Tokens of requests, as a server counted and may charge them."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def counts(self) -> dict[str, float]:
        """Counts for a shard's metadata; empty if nothing was counted."""
        found = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return {name: float(value) for name, value in found.items() if value}

    def __add__(self, other: "Usage") -> "Usage":
        """Returns the sums."""
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True)
class Response:
    """A response (given or generated, end-of-turn token included) and the source's distributions along it."""

    ids: Int[np.ndarray, "T"]
    logprobs: Float[np.ndarray, "T"]
    """Natural log-probability of each token of `ids`, at temperature 1; -inf where a server gives none."""
    topk: TopK
    finish_reason: str
    """`stop` if the model ended its turn, `length` if it was truncated, `given` for a teacher-forced response."""
    refusal: str | None = None
    """Why a server does not respond; there are no tokens then."""
    usage: Usage | None = None
    """What a server counted; None for an engine of the run."""
    vocabulary: tuple[bytes, ...] | None = None
    """Bytes of each id of `ids` and `topk`, if these are the response's own because the tokenizer is not known. The first, without
    bytes, is the end of a turn. None for ids of the engine's tokenizer."""

    @property
    def is_unscored(self) -> bool:
        """Whether there is not one distribution along the response."""
        return len(self.ids) > 0 and bool(np.isneginf(self.logprobs).all())


@runtime_checkable
class SourceEngine(Protocol):
    """A model that answers and scores. Each actor has one engine, called from a single thread (`EngineLoop`)."""

    tokenizer: Any
    max_model_len: int
    """Longest prompt plus response, in tokens."""
    vocab_size: int
    """Width of the logits, which may exceed the tokenizer's size."""

    def add(self, number: int, request: Request) -> None:
        """Queues a request; a later `step` returns its response under this number."""
        ...

    def step(self) -> list[tuple[int, Response]]:
        """Advances the queued requests and returns the finished responses, in any order."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...
