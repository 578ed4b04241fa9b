"""Which engine a model is loaded into."""

from collections.abc import Sequence

from profuser.engines.base import SourceEngine
from profuser.engines.transformers import TransformersEngine
from profuser.engines.vllm import VllmEngine, unsupported
from profuser.recipe.models import EngineConfig


def load_engine(path: str, revision: str | None, config: EngineConfig, end_ids: Sequence[int] = ()) -> SourceEngine:
    """Loads a model into the engine that the recipe names; `auto` takes vLLM where it knows the architecture.

    Args:
        path: model folder or Hub name.
        revision: of a Hub model.
        config: engine settings.
        end_ids: tokens that end a turn, beside the model's own end-of-sequence token.

    Raises:
        EngineError: the model cannot be loaded; the message names it and the remedy.
    """
    kind = config.kind
    if kind == "auto":
        reason = unsupported(path, revision, config.trust_remote_code)
        kind = "transformers" if reason else "vllm"
        if reason:
            print(f"{path}: taking the Transformers engine: {reason}", flush=True)
    if kind == "vllm":
        return VllmEngine(path, revision, config, end_ids)
    return TransformersEngine(path, revision, config, end_ids)
