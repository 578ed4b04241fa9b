"""Connects a source to its server: finds out what that gives, and starts the engine that sends requests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from profuser.engines.base import ReadSettings
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.errors import EngineError
from profuser.recipe.endpoints import EndpointConfig
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.template import TemplateConfig

if TYPE_CHECKING:
    from profuser.engines.endpoint.engine import EndpointEngine
    from profuser.engines.endpoint.tokens import ServedTokens


@dataclass(frozen=True)
class EndpointAccess:
    """What a server gave when the run began, and the key to send."""

    facts: EndpointFacts
    key: SecretStr | None
    how: ReadSettings
    vocab_size: int
    """Width of the model's logits."""

    def connect(self, path: str, source: ModelConfig, template: TemplateConfig) -> "EndpointEngine":
        """Returns the engine, once the server has answered as it did when the run began.

        Args:
            path: folder or Hub name of the tokenizer.
            source: the source.
            template: the template of its prompts.

        Raises:
            EngineError: the server gives something else now.
            UserError: it cannot be used, see `ask`.
        """
        from profuser.engines.endpoint.engine import EndpointEngine

        assert isinstance(source, SourceConfig)
        assert source.endpoint is not None
        tokens = read_tokens(path, source, template, self.vocab_size)
        found = ask_source(source, self.key, self.how, tokens)
        if changes := self.facts.differences(found):
            raise EngineError(
                f"{source.setting}: {source.endpoint.base_url} differs from when the run began: {'; '.join(changes)}; serve the "
                "same model in the same way, or collect again with --redo collect"
            )
        return EndpointEngine(source.endpoint, found, self.key, tokens)


@dataclass(frozen=True)
class JudgeAccess:
    """What the server of a judge gave when the run began, and the key to send."""

    facts: EndpointFacts
    key: SecretStr | None

    def check(self, endpoint: EndpointConfig, setting: str, found: EndpointFacts) -> None:
        """Raises EngineError where the server gives something else now."""
        if changes := self.facts.differences(found):
            raise EngineError(
                f"{setting}: {endpoint.base_url} differs from when the run began: {'; '.join(changes)}; serve the same model in "
                "the same way, or judge again with --redo rewards"
            )


def read_tokens(path: str, source: SourceConfig, template: TemplateConfig, vocab_size: int) -> "ServedTokens":
    """Reads the tokenizer of an endpoint; arguments as in `EndpointAccess.connect`."""
    from transformers import AutoTokenizer

    from profuser.alignment.token_bytes import TokenBytes
    from profuser.corpus.turn_ends import turn_ends
    from profuser.engines.endpoint.tokens import ServedTokens
    from profuser.models.reference import BYTE_TOKENIZER, ModelRef

    folder = BYTE_TOKENIZER if source.lacks_tokenizer else ModelRef(path, source.revision).local(weights=False)
    options = {"revision": source.revision, "trust_remote_code": source.engine.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(folder, **({} if source.lacks_tokenizer else options))
    ends = turn_ends(tokenizer, template, folder, source.revision)
    return ServedTokens(tokenizer, TokenBytes.from_tokenizer(tokenizer, vocab_size, ends), ends)


def ask_source(source: SourceConfig, key: SecretStr | None, how: ReadSettings, tokens: "ServedTokens") -> EndpointFacts:
    """Returns what a source's server gives now, see `ask`."""
    from profuser.engines.endpoint.asking import ask

    assert source.endpoint is not None
    setting = f"sources.{source.name}.endpoint"
    return ask(source.endpoint, setting, key, how.generation, how.top_k, None if source.lacks_tokenizer else tokens)
