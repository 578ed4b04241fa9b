"""Settings of the Serve application (models, resources, keys and limits), from the command line or a config file."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from profuser.config import Config
from profuser.errors import UserError
from profuser.recipe.template import RESERVED, Argument

AUTO, NONE = "auto", "none"
"""Parsers that are no names of vLLM's: that of the model's family, and no parser."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$")]


class Limits(Config):
    """Limits of one API key. A request above a limit is refused with the status given here; nothing is truncated silently."""

    max_body_bytes: int = Field(default=4 << 20, gt=0)
    """Maximum bytes of a request: 413."""
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    """Maximum tokens of a prompt, template included: 422. A prompt that exceeds the model's context is always refused (400)."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Maximum tokens of an answer, all choices together: 422; the default for a request that sets none."""
    concurrency: int = Field(default=64, gt=0)
    """Maximum concurrent requests: 429 with Retry-After. Counted by each replica of the gateway."""


class ServedModel(Config):
    """A model behind the API, and its replicas."""

    name: ModelName
    """Model name in the API."""
    model: str
    """Hugging Face folder or Hub name."""
    revision: str | None = None
    """Commit, branch or tag of a Hub model."""
    num_replicas: int | None = Field(default=None, gt=0)
    """Fixed number of replicas, instead of `min_replicas` to `max_replicas`."""
    min_replicas: int = Field(default=1, ge=0)
    """Minimum number of replicas; with 0 the model is unloaded when idle, and the next request waits until it is loaded again."""
    max_replicas: int = Field(default=1, gt=0)
    """Maximum number of replicas."""
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    """Requests per replica above which another replica is started."""
    max_ongoing_requests: int = Field(default=256, gt=0)
    """Maximum concurrent requests per replica."""
    max_queued_requests: int = Field(default=256, gt=0)
    """Maximum requests waiting for a replica, per replica of the gateway; more are refused at once: 429 with Retry-After."""
    graceful_shutdown_seconds: float = Field(default=300.0, ge=0)
    """Time that a stopping replica has to finish its answers."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that a replica reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that a replica reserves: as many as its parallelism needs, or a share of one."""
    chat_template: str | None = None
    """Jinja source of the chat template, or a file with it on the replica's node; by default the tokenizer's own."""
    template_arguments: dict[str, Argument] = Field(default={})
    """Variables of the template, e.g. `{enable_thinking: false}`; a request's `chat_template_kwargs` override them."""
    reasoning_parser: str = AUTO
    """vLLM's parser that separates reasoning from an answer, by name; `auto`: by the model's family, `none`: no separation."""
    tool_parser: str = AUTO
    """vLLM's parser of tool calls, by name; `auto`: by the model's family, `none`: requests with tools are refused."""
    adapters: dict[ModelName, str] = Field(default={})
    """LoRA adapters of this model: their names in the API, and their folders, URIs or Hub names."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights; `auto`: the checkpoint's on a GPU. On a CPU it is float32, or bfloat16 for a checkpoint in bfloat16
    of at least 16 MiB on a processor that multiplies such numbers."""
    quantization: str | None = None
    """Quantization method that vLLM supports (`fp8`, `awq` ...); by default the checkpoint's."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Maximum tokens of prompt plus answer; by default the model's maximum."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs over which each layer of one replica is spread."""
    pipeline_parallel_size: int = Field(default=1, gt=0)
    """Groups of such GPUs over which the layers of one replica are spread."""
    max_num_seqs: int | None = Field(default=None, gt=0)
    """Requests that the engine runs concurrently; by default vLLM's own number."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine may take."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """GiB for the KV cache on a CPU."""
    options: dict[str, bool | int | float | str] = Field(default={})
    """Further vLLM engine arguments by name."""
    trust_remote_code: bool = False
    """Whether code that ships with the model may run."""

    @model_validator(mode="after")
    def _replicas_fit(self) -> "ServedModel":
        if self.num_replicas is None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is less than min_replicas: {self.min_replicas}")
        return self

    @field_validator("template_arguments")
    @classmethod
    def _arguments_are_free(cls, value: dict[str, Argument]) -> dict[str, Argument]:
        if taken := [name for name in value if not name.isidentifier() or name in RESERVED]:
            raise ValueError(f"{taken[0]!r} cannot be set: it is no name of a variable, or it is the server's own")
        return value


class GatewaySettings(Config):
    """Settings of the gateway in front of the models."""

    keys_file: str | None = None
    """YAML list of API keys, see `profuser.serving.keys`; reloaded when it changes. Needed on every node that runs a gateway."""
    insecure: bool = False
    """Whether no key is required; then only clients on the same machine are answered."""
    limits: Limits = Limits()
    """Limits of every key that sets none."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the API; by default only the playground's own."""
    log_prompts: bool = False
    """Whether to log prompts and answers of unstreamed requests. By default a line has model, key's name, status and time."""
    num_gateways: int = Field(default=1, gt=0)
    """Replicas of the gateway, which checks keys and forwards requests to the models."""
    max_attempts: int = Field(default=3, gt=0)
    """Maximum attempts of a request whose replicas die."""
    graceful_shutdown_seconds: float = Field(default=300.0, ge=0)
    """Time that a stopping gateway has to finish its requests."""


class GatewayConfig(GatewaySettings):
    """Configuration of the gateway alone; it does not depend on how a model is served."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    """Model names; the playground shows the first one as the fused model."""
    adapters: dict[ModelName, ModelName] = Field(default={})
    """Names of LoRA adapters, each with the model that serves it."""


class ServeConfig(GatewaySettings):
    """Configuration of everything that is served."""

    models: tuple[ServedModel, ...] = Field(min_length=1)
    """Models to serve; the playground shows the first one as the fused model."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, value: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [model.name.replace("/", "-") for model in value]
        given = [*names, *(name for model in value for name in model.adapters)]
        if twice := [name for name in given if given.count(name) > 1]:
            raise ValueError(f"two models are named {twice[0]!r}")
        return value

    @property
    def gateway(self) -> GatewayConfig:
        """Configuration of the gateway."""
        settings = {name: getattr(self, name) for name in GatewaySettings.model_fields}
        adapters = {name: model.name for model in self.models for name in model.adapters}
        return GatewayConfig(models=tuple(model.name for model in self.models), adapters=adapters, **settings)

    @classmethod
    def parse(cls, tree: dict[str, Any], where: str) -> "ServeConfig":
        """Validates settings; raises a one-line UserError naming the first invalid one."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {key or 'settings'}: {first['msg'].removeprefix('Value error, ')}") from None
