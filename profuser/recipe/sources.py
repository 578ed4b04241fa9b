"""The recipe sections of models: what the target, the sources and generative judges have in common, and how they generate."""

from pydantic import Field, model_validator

from profuser.config import Config, Name, execution_field, later_field
from profuser.recipe.endpoints import EndpointConfig, TokenCost
from profuser.recipe.engine import EngineConfig
from profuser.recipe.resources import PoolConfig
from profuser.recipe.template import TemplateConfig


class GenerationConfig(Config):
    """Generation settings of a model's answers."""

    max_tokens: int = Field(default=512, gt=0)
    """Longest answer, in tokens of the model itself."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with this mass."""
    top_k: int | None = Field(default=None, gt=0)
    """Number of most probable tokens to sample from."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Smallest probability of a sampled token, as a share of the most probable token's."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Penalty on repeated tokens: above 1, tokens that already occurred become less probable."""


class ModelConfig(Config):
    """A model and how to run it."""

    model: str
    """Local folder, GGUF file, URI (`s3://`, `gs://`), Hub name, GGUF file on the Hub (`owner/name/file.gguf`), or `lab://...`. A
    folder or Hub name may be a LoRA adapter."""
    revision: str | None = None
    """Commit, branch or tag of a Hub model."""
    template: TemplateConfig | None = later_field(None)
    """Template of this model, instead of the recipe's `template`."""
    engine: EngineConfig = EngineConfig()
    pool: PoolConfig = execution_field(PoolConfig())

    @property
    def num_devices(self) -> int:
        """GPUs of one actor's engine."""
        return self.engine.num_devices


class ServedModelConfig(ModelConfig):
    """A model that the run loads, or one that answers behind a server."""

    model: str = ""
    """As `target.model`; none for an endpoint."""
    endpoint: EndpointConfig | None = later_field(None)
    """Server behind which the model answers, instead of a model that the run loads."""

    @property
    def num_devices(self) -> int:
        """GPUs of one actor's engine; an endpoint needs none."""
        return 0 if self.endpoint else self.engine.num_devices

    @property
    def token_cost(self) -> TokenCost | None:
        """Price of its tokens; None for a model that is loaded, or without a price."""
        return self.endpoint.cost if self.endpoint else None

    @property
    def section(self) -> str:
        """Key of its section in the recipe."""
        raise NotImplementedError

    @property
    def facts_key(self) -> str:
        """Name under which a run keeps what its server gives."""
        return self.section.replace(".", "/", 1)

    @model_validator(mode="after")
    def _one_place(self) -> "ServedModelConfig":
        if bool(self.model) == bool(self.endpoint):
            raise ValueError("give either a model or an endpoint, whose model is named in endpoint.model")
        if self.endpoint and self.pool.max_actors > 1:
            raise ValueError(
                "one actor sends all requests to an endpoint; raise endpoint.concurrency instead of pool.max_actors"
            )
        return self


class SourceConfig(ServedModelConfig):
    """One of the models that are fused."""

    name: Name
    """Name of this source in artifacts, tables and plots."""
    generation: GenerationConfig | None = None
    """Generation settings of this source; by default `collect.generation`."""

    @property
    def section(self) -> str:
        """Key of its section in the recipe."""
        return f"sources.{self.name}"

    @property
    def facts_key(self) -> str:
        """Name under which a run keeps what its server gives."""
        return self.name

    @property
    def setting(self) -> str:
        """Key of the model, or of an endpoint's tokenizer, in the recipe."""
        return f"{self.section}.{'endpoint.tokenizer' if self.endpoint else 'model'}"

    @property
    def lacks_tokenizer(self) -> bool:
        """Whether its tokenizer is not known: an endpoint without one. It cannot teacher-force."""
        return self.endpoint is not None and self.endpoint.tokenizer is None


class TargetConfig(ModelConfig):
    """The model that is trained: often one of the sources."""

    @model_validator(mode="before")
    @classmethod
    def _no_endpoint(cls, value: object) -> object:
        if isinstance(value, dict) and "endpoint" in value:
            raise ValueError("the target is trained, so its weights are needed: give model, not endpoint")
        return value
