"""The section of a recipe that says how the target is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from profuser.config import Config, execution_field
from profuser.schedule import PROGRESSIVE, SchedulePiece, check_pieces


class OptimizerConfig(Config):
    """AdamW with warm-up and a decay over the whole run. Ours, after FuseChat: the paper does not say."""

    learning_rate: float = Field(default=5.0e-6, gt=0)
    """Peak learning rate."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of the updates during which the rate rises linearly from 0."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak, reached along a cosine."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""


class Epochs(Config):
    """So many passes over the training examples."""

    kind: Literal["epochs"] = "epochs"
    value: float = Field(default=3.0, gt=0)


class Steps(Config):
    """So many updates of the target."""

    kind: Literal["steps"]
    value: int = Field(gt=0)


class WorkersConfig(Config):
    """Ray Train's workers: one per device."""

    num_workers: int = execution_field(2, gt=0)
    """Workers over which parameters are sharded."""
    num_cpus: float = execution_field(1.0, gt=0)
    """CPUs a worker reserves."""
    use_gpu: bool | None = execution_field(None)
    """One GPU per worker; by default wherever the cluster has as many GPUs as workers."""
    max_failures: int = execution_field(3, ge=0)
    """Restarts from the last checkpoint before the stage fails."""


class FuseConfig(Config):
    """Training of the target: `CE + beta * forward KL`, weighted per mode by the schedule."""

    beta: float = Field(default=0.11, ge=0)
    """Weight of the KL against the cross-entropy (ours: FuseLLM's 0.9 and 0.1 make 0.11)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions in the KL."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """What the KL does with the mass outside the teacher's top-k: one more category, spread over the top-k, or nothing."""
    schedule: tuple[SchedulePiece, ...] = PROGRESSIVE
    """Weights of the two modes over the run's progress; by default the paper's two stages, half of the updates each (ours)."""
    duration: Annotated[Epochs | Steps, Field(discriminator="kind")] = Epochs()
    batch_rows: int = Field(default=128, gt=0)
    """Corpus rows per update, over all workers (FuseChat: 128)."""
    micro_batch_tokens: int = execution_field(8192, gt=0)
    """Padded tokens that one worker holds at a time; gradients accumulate until the batch is whole."""
    max_tokens: int = Field(default=2048, gt=0)
    """A longer example is cut at its end, and counted."""
    loss_chunk_tokens: int = execution_field(1024, gt=0)
    """Response tokens whose logits exist at one time."""
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of parameters: `auto` is bfloat16 on GPUs and float32 on CPUs. Master weights are float32."""
    activation_checkpointing: bool = execution_field(False)
    """Recompute each block's activations in the backward pass."""
    checkpoint_every_steps: int = execution_field(100, gt=0)
    """Updates between two checkpoints."""
    keep_checkpoints: int = execution_field(2, gt=0)
    """Checkpoints kept."""
    max_consecutive_skips: int = Field(default=5, gt=0)
    """The stage stops after so many steps in a row with a non-finite loss or gradient."""
    workers: WorkersConfig = execution_field(WorkersConfig())

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> "FuseConfig":
        check_pieces(self.schedule)
        return self
