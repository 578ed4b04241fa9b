"""The section of a recipe that says how the target is trained."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from profuser.config import Config, execution_field
from profuser.recipe.resources import Attention, MemoryConfig, WorkersConfig
from profuser.recipe.schedule import PROGRESSIVE, SchedulePiece, check_pieces


class OptimizerConfig(Config):
    """AdamW with warm-up and a cosine. Ours, after FuseChat: the paper does not say."""

    learning_rate: float = Field(default=5.0e-6, gt=0)
    """Peak learning rate."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of the updates during which the rate rises linearly from 0."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak, reached along a cosine."""
    decay: Literal["run", "stage"] = "run"
    """One warm-up and one cosine over the whole run, or one over each piece of the schedule."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""


class Epochs(Config):
    """So many times the tokens of all examples, those of both modes: it does not depend on the schedule."""

    kind: Literal["epochs"] = "epochs"
    value: float = Field(default=3.0, gt=0)


class Steps(Config):
    """So many updates of the target."""

    kind: Literal["steps"]
    value: int = Field(gt=0)


class LoraConfig(Config):
    """Low-rank adapters in place of full training (arXiv 2106.09685); the export has them merged."""

    rank: int = Field(default=16, gt=0)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' output is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' input."""
    modules: tuple[str, ...] = ()
    """Names of the linear layers that get adapters (`q_proj` ...); by default all but the output layer."""


class GuardConfig(Config):
    """What training does about numbers that are not finite, and about spikes."""

    max_consecutive_skips: int = Field(default=5, gt=0)
    """The stage stops after so many steps in a row with a non-finite loss or gradient."""
    spike_deviations: float = execution_field(8.0, gt=0)
    """A loss so many median absolute deviations above the median of late is reported with its rows."""


class FuseConfig(Config):
    """Training of the target: `CE + beta * forward KL`, weighted per mode by the schedule."""

    beta: float = Field(default=0.11, ge=0)
    """Weight of the KL against the cross-entropy (ours: FuseLLM's 0.9 and 0.1 make 0.11)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions in the KL."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """What the KL does with the mass outside the teacher's top-k: one more category, spread over the top-k, or nothing."""
    weighting: Literal["none", "margin"] = "none"
    """What an example counts among those of its mode: all the same (the paper's), or as much as the best source leads (ours): the
    share by which the ground truth surprises it less than the second, or the votes that it is ahead by, of all votes."""
    schedule: tuple[SchedulePiece, ...] = PROGRESSIVE
    """Weights of the two modes over the run's progress; by default the paper's two stages, half of the updates each (ours)."""
    duration: Annotated[Epochs | Steps, Field(discriminator="kind")] = Epochs()
    batch_tokens: int = Field(default=65_536, gt=0)
    """Tokens of an update, prompts and responses of all its examples, over all workers (ours: FuseChat's 128 rows of 512)."""
    max_tokens: int = Field(default=2048, gt=0)
    """A longer example is cut at its end, and counted; examples are packed to this length."""
    packing: bool = True
    """Examples lie end to end in a sequence, none seeing another; without it each is padded to the longest beside it."""
    shuffle_rows: int = Field(default=16_384, gt=0)
    """Rows within which an epoch's order is random; shards, too, are read in a random order."""
    micro_batch_tokens: int = execution_field(8192, gt=0)
    """Tokens, padding included, that one worker holds at a time; gradients accumulate until the batch is whole."""
    loss_chunk_tokens: int = execution_field(1024, gt=0)
    """Response tokens whose logits exist at one time."""
    seed: int | None = None
    """Of the order of examples, dropout and adapters; by default the recipe's. Another one is another try over the same signals."""
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """Train low-rank adapters only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of parameters: `auto` is bfloat16 on GPUs and float32 on CPUs. Master weights are float32."""
    attention: Attention = execution_field("auto")
    """Attention function: `varlen` knows where packed examples begin and needs no mask; the others are Transformers'. `auto` takes
    `varlen` where the target's attention allows it, else the best that Transformers has for the target; training prints which."""
    validation_rows: int = Field(default=64, ge=0)
    """Rows kept apart, on which bits per byte of both modes are measured at every checkpoint; at most a tenth of all."""
    checkpoint_every_steps: int = execution_field(100, gt=0)
    """Updates between two checkpoints."""
    keep_checkpoints: int = execution_field(2, gt=0)
    """Checkpoints kept, those with the fewest held-out bits per byte; the last one is kept besides."""
    export: Literal["last", "best"] = "last"
    """Which weights become the fused model: the last, or those of the checkpoint with the fewest held-out bits per byte."""
    guards: GuardConfig = GuardConfig()
    memory: MemoryConfig = execution_field(MemoryConfig())
    workers: WorkersConfig = execution_field(WorkersConfig())

    @field_validator("schedule")
    @classmethod
    def _schedule_is_whole(cls, value: tuple[SchedulePiece, ...]) -> tuple[SchedulePiece, ...]:
        check_pieces(value)
        return value

    @model_validator(mode="after")
    def _best_is_measured(self) -> "FuseConfig":
        if self.export == "best" and self.validation_rows == 0:
            raise ValueError("export: best needs validation_rows above 0, by which the best is known")
        return self


def count_steps(config: FuseConfig, num_tokens: int) -> int:
    """Updates of a run over examples of so many tokens (both modes): as configured, or enough for the epochs."""
    if isinstance(config.duration, Epochs):
        return max(1, math.ceil(config.duration.value * num_tokens / config.batch_tokens))
    return config.duration.value
