"""The recipe section of a source that answers behind an OpenAI-compatible server, not in an engine of the run."""

from typing import Annotated

from pydantic import Field, JsonValue, field_validator

from profuser.config import Config, execution_field

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OWN_FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "seed", "stop", "n", "stream", "logprobs", "top_logprobs", "prompt_logprobs"),
    "return_tokens_as_token_ids",
)
"""Fields of a request's body that the run sets itself."""


class TokenCost(Config):
    """Price of a provider's tokens, in `plan.currency`."""

    input_per_million: Price = execution_field()
    """Price of a million tokens that the model reads."""
    output_per_million: Price = execution_field()
    """Price of a million tokens that the model generates."""

    def money(self, input_tokens: float, output_tokens: float) -> float:
        """Returns the price of tokens."""
        return (input_tokens * self.input_per_million + output_tokens * self.output_per_million) / 1e6


class EndpointConfig(Config):
    """An OpenAI-compatible server (vLLM, SGLang, a provider) and one of its models."""

    base_url: str = execution_field(pattern=r"^https?://\S+$")
    """Address up to the version: `http://host:8000/v1`."""
    model: str = Field(min_length=1)
    """Name of the model, as `/v1/models` lists it."""
    tokenizer: str | None = execution_field(None)
    """Folder or Hub name with the model's tokenizer (no weights are needed). Without it, the server cannot teacher-force, and the
    distributions of its answers are used with `collect.signals: eager` alone, if it gives the bytes of its tokens. The tokenizer's
    content is part of the run's identity, its place is not."""
    key_env: str | None = execution_field(None)
    """Environment variable that holds the key; by default no key is sent. The key itself is never stored or printed."""
    concurrency: int = execution_field(16, gt=0)
    """Requests in flight."""
    requests_per_minute: float | None = execution_field(None, gt=0)
    """Most requests sent in a minute."""
    tokens_per_minute: int | None = execution_field(None, gt=0)
    """Most tokens requested in a minute: those of the prompt and the longest answer allowed."""
    timeout_seconds: float = execution_field(600.0, gt=0)
    """Longest wait for one response."""
    retry_seconds: float = execution_field(900.0, ge=0)
    """Longest time over which a request is repeated while the server is overloaded, limits its rate or cannot be reached."""
    options: dict[str, JsonValue] = Field(default={})
    """Further fields of the body of every chat request, e.g. `{chat_template_kwargs: {enable_thinking: false}}`."""
    cost: TokenCost | None = execution_field(None)
    """Prices, with which the plan foretells the cost and the report states it."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        if "@" in value:
            raise ValueError("an address with a key or password in it would be stored; name its variable in key_env")
        return value.rstrip("/")

    @field_validator("options")
    @classmethod
    def _no_setting_twice(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        own = [name for name in OWN_FIELDS if name in value]
        if own:
            raise ValueError(f"{own[0]!r} is set by the recipe itself, not in options")
        return value
