"""Loads a model into the engine that its recipe selects."""

from collections.abc import Sequence
from dataclasses import dataclass

from profuser.corpus.turn_ends import turn_ends
from profuser.engines.base import SourceEngine
from profuser.engines.collecting import SourceReader
from profuser.engines.endpoint.access import EndpointAccess
from profuser.engines.transformers import TransformersEngine
from profuser.engines.vllm import VllmEngine, unsupported_reason
from profuser.errors import EngineError
from profuser.models.reference import local_model
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.template import TemplateConfig


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


@dataclass(frozen=True)
class ReadModel:
    """A model that reads and answers rows; its engine is not loaded yet."""

    path: str
    """Folder, URI or Hub name."""
    config: ModelConfig
    template: TemplateConfig
    access: EndpointAccess | None = None
    """For an endpoint, what its server gives and the key to send; `path` is then its tokenizer's."""

    def load(self) -> SourceReader:
        """Loads the engine, which stops at every token that ends the model's turn.

        Raises:
            EngineError: the model cannot be loaded, or an endpoint no longer gives what it gave when the run began.
        """
        from transformers import AutoTokenizer

        if isinstance(self.config, SourceConfig) and self.config.endpoint and not self.access:
            raise EngineError(f"{self.config.setting}: its server has not been asked what it gives")
        if self.access:
            return SourceReader(self.access.connect(self.path, self.config, self.template), self.template)
        path, trust = local_model(self.path, self.config.revision), self.config.engine.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(path, revision=self.config.revision, trust_remote_code=trust)
        ends = turn_ends(tokenizer, self.template, path, self.config.revision)
        return SourceReader(load_engine(path, self.config.revision, self.config.engine, ends), self.template)
