"""Compares a source's engine with Transformers on a few rows: an engine that computes another model is found before it is paid for.

Legend: T response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from profuser.engines.base import Request
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.endpoint.engine import EndpointEngine
from profuser.engines.loop import EngineLoop
from profuser.engines.transformers import TransformersEngine
from profuser.recipe.engine import EngineConfig

NUM_ROWS = 2
MAX_NATS = 0.05
"""Mean difference per token that is reported as a disagreement: a choice, above the rounding of bfloat16 and below the difference
of an engine that computes another model."""


@dataclass(frozen=True)
class ScoredRow:
    """A teacher-forced response, as an engine scored it."""

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: Float[np.ndarray, "T"]


@dataclass(frozen=True)
class Disagreement:
    """Absolute differences of two engines' log-probabilities of the same tokens, in nats."""

    mean: float
    largest: float
    num_tokens: int

    @property
    def is_error(self) -> bool:
        """Whether it is more than rounding."""
        return not self.mean <= MAX_NATS

    def sentence(self, source: str) -> str:
        """Returns the difference in words, with the remedy if there is one to take."""
        found = (
            f"source {source}: vLLM and Transformers differ by {self.mean:.3f} nats per token (at most {self.largest:.2f}) over "
            f"{self.num_tokens} teacher-forced tokens"
        )
        if not self.is_error:
            return found
        return f"WARNING: {found}: vLLM computes another model; set sources.{source}.engine.kind: transformers"


def scored_rows(source: SourceReader, prompts: Sequence[list[int]], results: Sequence[RowSignals]) -> list[ScoredRow]:
    """Returns the first rows that an engine has scored, to be compared; none if it is Transformers itself, or not in this process.

    Args:
        source: the source that has read the rows.
        prompts: token ids of each row's prompt.
        results: what it has read, in the same order.
    """
    if isinstance(source.engine, TransformersEngine | EndpointEngine):
        return []
    pairs = [(ids, entry.training) for ids, entry in zip(prompts, results, strict=True) if entry.training is not None]
    return [ScoredRow(ids, found.ids.tolist(), found.logprobs) for ids, found in pairs[:NUM_ROWS]]


def compare(path: str, revision: str | None, config: EngineConfig, rows: Sequence[ScoredRow]) -> Disagreement:
    """Scores rows with Transformers, in the engine's own type, and compares.

    Args:
        path: model folder or Hub name.
        revision: revision of a Hub model.
        config: settings of the source's engine.
        rows: rows as the engine scored them.

    Raises:
        EngineError: Transformers cannot load the model.
    """
    loop = EngineLoop(TransformersEngine(path, revision, config.model_copy(update={"kind": "transformers"})))
    try:
        found = loop.run([Request(row.prompt_ids, 0, row.response_ids) for row in rows])
    finally:
        loop.close()
    gaps = np.concatenate([np.abs(one.logprobs - row.logprobs) for one, row in zip(found, rows, strict=True)])
    return Disagreement(float(gaps.mean()), float(gaps.max()), len(gaps))
