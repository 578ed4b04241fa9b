"""The recipe section of rewards (reward models, generative judges, verifiers), which judge answers, and of their votes."""

from typing import Annotated, Literal

from pydantic import Field

from profuser.config import Config, execution_field, later_field
from profuser.recipe.judging import JudgeBase
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.template import OwnTemplate, TemplateConfig
from profuser.recipe.verifiers import VerifierConfig


class RewardEngineConfig(Config):
    """The engine that runs a reward model."""

    kind: Literal["auto", "vllm", "transformers"] = execution_field("auto")
    """Engine; `auto` is vLLM on a GPU if it supports the architecture, else Transformers."""
    tensor_parallel_size: int = execution_field(1, gt=0)
    """GPUs over which one reward model is spread (vLLM)."""
    gpu_memory_utilization: float = execution_field(0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine may use (vLLM)."""

    @property
    def num_devices(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel_size


class RewardModelConfig(JudgeBase):
    """A sequence classifier with one label, over the rendered conversation."""

    kind: Literal["reward_model"]
    model: str
    """Local folder, URI (`s3://`, `gs://`), Hub name, or `lab://...`."""
    revision: str | None = None
    """Commit, branch or tag of a Hub model."""
    engine: RewardEngineConfig = execution_field(RewardEngineConfig())
    template: TemplateConfig = later_field(OwnTemplate())
    """Template of its conversations; a judge without a chat template of its own reads the turns one below the other."""
    max_length: int = Field(default=2048, gt=0)
    """Longest conversation in tokens of the reward model; a longer one is cut from the left."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type; `auto` as in a source's `engine.dtype`."""
    batch_size: int = execution_field(32, gt=0)
    """Conversations that the engine runs concurrently."""
    trust_remote_code: bool = False
    """Whether code that ships with the model may run."""

    @property
    def num_devices(self) -> int:
        """GPUs that one actor needs."""
        return self.engine.num_devices


RewardConfig = Annotated[RewardModelConfig | VerifierConfig | LlmJudgeConfig, Field(discriminator="kind")]


VOTE_SETTINGS = ("weight", "accept_above")
"""Settings of a reward that change the vote, but no score."""


class VoteConfig(Config):
    """Rules of the vote. The paper specifies only that the answer with most votes wins."""

    margin: float = Field(default=0.0, ge=0)
    """Lead of the best answer over the second up to which a reward model abstains, in standard deviations of its rewards."""
    no_majority: Literal["tie_break", "skip"] = "tie_break"
    """Without a strict majority: the mean standardised reward decides, or the inference-mode example is left out."""
    ties: Literal["share", "skip"] = later_field("share")
    """Answers with equal votes and equal mean reward: one of them is drawn by seed and row, so that no source is favoured, or the
    inference-mode example is left out. Equal answers of several sources are one answer, and one of the sources is drawn."""
