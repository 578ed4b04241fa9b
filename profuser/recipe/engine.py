"""The recipe section of the engine that runs a source."""

from typing import Literal

from pydantic import Field, field_validator

from profuser.config import Config, execution_field


class EngineConfig(Config):
    """The engine that runs a source."""

    kind: Literal["auto", "vllm", "transformers"] = execution_field("auto")
    """Engine; `auto` is vLLM, or Transformers for an architecture that the installed vLLM does not support."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type; `auto` is the checkpoint's type on a GPU. On a CPU it is float32, or bfloat16 for a checkpoint in bfloat16 of at
    least 16 MiB if all CPU nodes multiply such numbers (`amx_bf16`, `avx512_bf16`) when the run begins."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Longest prompt plus response in tokens; by default the model's own limit."""
    quantization: str | None = None
    """Quantization method that vLLM supports (`fp8`, `awq` ...); by default the checkpoint's."""
    tensor_parallel_size: int = execution_field(1, gt=0)
    """GPUs over which each layer of one engine is spread."""
    pipeline_parallel_size: int = execution_field(1, gt=0)
    """Groups of such GPUs over which the layers of one engine are spread."""
    gpu_memory_utilization: float = execution_field(0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine may use."""
    max_num_seqs: int = execution_field(128, gt=0)
    """Requests that the engine runs concurrently."""
    kv_cache_gib: float = execution_field(1.0, gt=0)
    """GiB for the KV cache on a CPU."""
    shards_in_flight: int = execution_field(3, gt=0)
    """Shards that an engine processes concurrently: while one finishes, rows of the next fill the batch."""
    options: dict[str, bool | int | float | str] = execution_field({})
    """Further vLLM engine arguments by name, e.g. `{max_num_batched_tokens: 8192}`."""
    trust_remote_code: bool = False
    """Whether code that ships with the model may run."""

    @property
    def num_devices(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @field_validator("options")
    @classmethod
    def _no_setting_twice(cls, value: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        own = {"model", "revision", "max_logprobs", *cls.model_fields} & value.keys()
        if own:
            raise ValueError(f"{sorted(own)[0]!r} is set by the recipe itself, not in options")
        return value
