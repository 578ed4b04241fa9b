"""What is served, with how much, and to whom: the arguments of the Serve application, from the command line or a config file."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from profuser.config import Config
from profuser.errors import UserError

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$")]


class Limits(Config):
    """What one API key may ask for. What is above is refused with the status given here; nothing is cut silently."""

    max_body_bytes: int = Field(default=4 << 20, gt=0)
    """Bytes of a request: 413."""
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a prompt, template included: 422. What does not fit into the model's context is refused without it (400)."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Tokens that an answer may have, all choices together: 422; a request that names no number gets this one."""
    concurrency: int = Field(default=64, gt=0)
    """Requests at one time: 429 with Retry-After. Counted by each replica of the gateway."""


class ServedModel(Config):
    """A model behind the API, and its replicas."""

    name: ModelName
    """What clients call it."""
    model: str
    """Hugging Face folder or Hub name."""
    num_replicas: int | None = Field(default=None, gt=0)
    """A fixed number of replicas, instead of `min_replicas` to `max_replicas`."""
    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas; 0 lets it go when nobody asks, and the next request waits until it is there again."""
    max_replicas: int = Field(default=1, gt=0)
    """Most replicas."""
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    """Requests per replica above which one more is started."""
    max_ongoing_requests: int = Field(default=256, gt=0)
    """Requests that a replica takes at one time."""
    max_queued_requests: int = Field(default=256, gt=0)
    """Requests that wait for a replica, of each replica of the gateway; more are refused at once: 429 with Retry-After."""
    graceful_shutdown_seconds: float = Field(default=300.0, ge=0)
    """How long a replica that is to stop may finish its answers."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that a replica reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that a replica reserves; `tensor_parallel_size` of them, or a share of one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: the checkpoint's type on a GPU, float32 on a CPU."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Longest prompt plus answer in tokens; by default what the model allows."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs over which one replica is spread."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine may take."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """On a CPU: memory for the KV cache."""

    @model_validator(mode="after")
    def _replicas_fit(self) -> "ServedModel":
        if self.num_replicas is None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is less than min_replicas: {self.min_replicas}")
        return self


class GatewaySettings(Config):
    """What stands before the models."""

    keys_file: str | None = None
    """YAML list of API keys, see `profuser.serving.keys`; read again when it changes. On every node that runs a gateway."""
    insecure: bool = False
    """Ask for no key; then only clients on the same machine are answered."""
    limits: Limits = Limits()
    """Of every key that has none of its own."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the API; by default none, but the playground's own."""
    log_prompts: bool = False
    """Write prompts and answers of unstreamed requests to the log. By default a line has model, key's name, status and time."""
    num_gateways: int = Field(default=1, gt=0)
    """Replicas of the gateway, which checks keys and hands requests to the models."""
    max_attempts: int = Field(default=3, gt=0)
    """How often a request is put to a replica when those before have died under it."""
    graceful_shutdown_seconds: float = Field(default=300.0, ge=0)
    """How long a gateway that is to stop may finish what it has taken."""


class GatewayConfig(GatewaySettings):
    """The gateway alone: a change of how a model is served does not touch it."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    """Names; the first one is what the playground asks first."""


class ServeConfig(GatewaySettings):
    """All that is served."""

    models: tuple[ServedModel, ...] = Field(min_length=1)
    """The first one is what the playground asks first."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, value: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [model.name.replace("/", "-") for model in value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two models are called {twice[0]!r}")
        return value

    @property
    def gateway(self) -> GatewayConfig:
        """What the gateway needs of it."""
        settings = {name: getattr(self, name) for name in GatewaySettings.model_fields}
        return GatewayConfig(models=tuple(model.name for model in self.models), **settings)

    @classmethod
    def parse(cls, tree: dict[str, Any], where: str) -> "ServeConfig":
        """Checks settings; UserError that says which of them is wrong, one line."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {key or 'settings'}: {first['msg'].removeprefix('Value error, ')}") from None
