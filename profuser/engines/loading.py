"""Loads a model into the engine that its recipe selects."""

from collections.abc import Sequence

from profuser.engines.base import SourceEngine
from profuser.engines.transformers import TransformersEngine
from profuser.engines.vllm import VllmEngine, unsupported_reason
from profuser.recipe.models import EngineConfig


def load_engine(path: str, revision: str | None, config: EngineConfig, end_ids: Sequence[int] = ()) -> SourceEngine:
    """Loads a model into the engine that the recipe names; `auto` selects vLLM if it supports the architecture.

    Args:
        path: model folder or Hub name.
        revision: revision of a Hub model.
        config: engine settings.
        end_ids: tokens that end a turn, in addition to the model's own end-of-sequence token.

    Raises:
        EngineError: the model cannot be loaded; the message names it and the fix.
    """
    kind = config.kind
    if kind == "auto":
        reason = unsupported_reason(path, revision, config.trust_remote_code)
        kind = "transformers" if reason else "vllm"
        if reason:
            print(f"{path}: using the Transformers engine: {reason}", flush=True)
    if kind == "vllm":
        return VllmEngine(path, revision, config, end_ids)
    return TransformersEngine(path, revision, config, end_ids)
