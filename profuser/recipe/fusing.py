"""The recipe section of training."""

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from profuser.config import Config, execution_field, later_field
from profuser.recipe.resources import Attention, MemoryConfig, WorkersConfig
from profuser.recipe.schedule import PROGRESSIVE, SchedulePiece, check_pieces, round_starts, uses


class OptimizerConfig(Config):
    """AdamW with warm-up and cosine decay. Our choice, after FuseChat: the paper does not specify it."""

    learning_rate: float = Field(default=5.0e-6, gt=0)
    """Peak learning rate."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of updates over which the rate rises linearly from 0."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak, reached along a cosine."""
    decay: Literal["run", "stage"] = "run"
    """Span of warm-up and cosine: the whole run, or each piece of the schedule (`stage`)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Norm to which the whole gradient is clipped."""


class Epochs(Config):
    """Training length in passes over the tokens of all examples of inference and training mode, and of the other modes that the
    schedule uses; independent of the schedule otherwise."""

    kind: Literal["epochs"] = "epochs"
    value: float = Field(default=3.0, gt=0)
    """Number of passes; a fraction is allowed."""


class Steps(Config):
    """Training length in updates of the target."""

    kind: Literal["steps"]
    value: int = Field(gt=0)
    """Number of updates."""


class LoraConfig(Config):
    """Low-rank adapters instead of full training (arXiv 2106.09685); the export has them merged."""

    rank: int = Field(default=16, gt=0)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters' output: `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters' input; above 0 experts get no adapters."""
    modules: tuple[str, ...] = ()
    """Names of the linear layers and experts' matrices that get adapters (`q_proj`, `gate_up_proj` ...); by default all but the
    output layer."""


class DivergenceConfig(Config):
    """How far the target's distribution is from a teacher's; `profuser/training/divergences.py` has the formulas."""

    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew"] = "forward_kl"
    """`forward_kl` covers all that the teacher holds likely, `reverse_kl` avoids what it holds unlikely; `jsd` lies between them;
    `skew` is the forward KL from a mixture with the teacher, with smaller gradients where the target is far off."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the teacher in the mixture of `jsd` (default 0.5) and `skew` (default 0.1)."""

    @property
    def weight(self) -> float:
        """The weight of the teacher in the mixture."""
        return self.alpha or {"skew": 0.1}.get(self.kind, 0.5)

    @model_validator(mode="after")
    def _alpha_is_used(self) -> "DivergenceConfig":
        if self.alpha is not None and self.kind not in ("jsd", "skew"):
            raise ValueError(f"alpha has no meaning for {self.kind}; it is the mixture's weight in jsd and skew")
        return self


class DivergencesConfig(Config):
    """The divergence of each mode. A name, or one divergence, stands for both modes."""

    inference: DivergenceConfig = DivergenceConfig()
    """On the sources' answers."""
    training: DivergenceConfig = DivergenceConfig()
    """On the ground truth."""
    on_policy: DivergenceConfig = later_field(DivergenceConfig(kind="reverse_kl"))
    """On the target's own answers, where it is the whole loss: without cross-entropy, and not multiplied by `beta`."""


def _for_both_modes(value: Any) -> Any:
    value = {"kind": value} if isinstance(value, str) else value
    if isinstance(value, dict) and not {"inference", "training", "on_policy"} & value.keys():
        return {"inference": value, "training": value}
    if isinstance(value, dict):
        return {mode: {"kind": own} if isinstance(own, str) else own for mode, own in value.items()}
    return value


class PreferenceLossConfig(Config):
    """The loss of preference mode; `profuser/training/preference.py` has the formulas."""

    kind: Literal["dpo", "simpo"] = "dpo"
    """`dpo` compares with the target as it was when the schedule's piece began, `simpo` with nothing."""
    beta: float | None = Field(default=None, gt=0)
    """Scale of an answer's log-probability in its reward; by default 2 for `dpo` and 2.5 for `simpo`, per token. (A DPO over whole
    answers, `length_normalised: false`, uses some 0.1.)"""
    margin: float = Field(default=0.0, ge=0)
    """Lead in reward that the better answer should have (SimPO's gamma)."""
    length_normalised: bool = True
    """Whether an answer's log-probability is its mean per token, so that long answers do not weigh more."""

    @property
    def scale(self) -> float:
        """The effective beta."""
        return self.beta or {"dpo": 2.0, "simpo": 2.5}[self.kind]


class GuardConfig(Config):
    """Handling of non-finite numbers and of loss spikes."""

    max_consecutive_skips: int = Field(default=5, gt=0)
    """Consecutive updates with a non-finite gradient after which the stage `fuse` fails."""
    spike_deviations: float = execution_field(8.0, gt=0)
    """Median absolute deviations above the recent median at which a loss is reported with its rows."""


class FuseConfig(Config):
    """Training of the target: `CE + beta * forward KL`, weighted per mode by the schedule."""

    beta: float = Field(default=0.11, ge=0)
    """Weight of the KL against the cross-entropy (not in the paper: FuseLLM's weights 0.9 and 0.1 give 0.11)."""
    divergence: Annotated[DivergencesConfig, BeforeValidator(_for_both_modes)] = later_field(DivergencesConfig())
    """What is minimised beside the cross-entropy: `forward_kl` (the paper's), `reverse_kl`, `jsd` or `skew`; per mode by
    `{inference: ..., training: ..., on_policy: ...}`, with a weight by `{kind: jsd, alpha: 0.1}`. Metrics name it `kl`, whichever
    it is."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions in the KL."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """Treatment of the mass outside the teacher's top-k in the KL: one more category, spread over the top-k, or ignored."""
    kl_positions: Literal["all", "ahead"] = later_field("all")
    """Response tokens that have a KL: all, or those to which the teacher gives more probability than the target does at that update
    (not in the paper)."""
    preference: PreferenceLossConfig = later_field(PreferenceLossConfig())
    """Loss of the pairs, where the schedule has a weight of `preference`."""
    weighting: Literal["none", "margin"] = "none"
    """Weight of an example within its mode: equal (the paper's), or the best source's lead over the second (not in the paper):
    the relative difference of their cross-entropies (training mode), or the difference of their shares of the votes (inference).
    Pairs and answers of the target weigh alike."""
    schedule: tuple[SchedulePiece, ...] = PROGRESSIVE
    """Weights of the modes over the run's progress; by default the paper's two stages, each for half of the updates (their
    lengths are not in the paper)."""
    duration: Annotated[Epochs | Steps, Field(discriminator="kind")] = Epochs()
    """Training length: passes over the tokens, or updates."""
    rounds: int = later_field(1, ge=1)
    """Rounds of equally many updates (not in the paper). At the start of each but the first, the target as it is then answers the
    corpus again, and the rows' teachers read these answers (stage `rounds`); they are what `on_policy` then trains. A round in
    which the schedule gives it no weight continues the one before. With `export: best`, the last round's best checkpoint counts."""
    batch_tokens: int = Field(default=65_536, gt=0)
    """Tokens of an update, prompts and responses of all its examples, over all workers. Not in the paper: FuseChat's 128 rows of
    512."""
    max_tokens: int = Field(default=2048, gt=0)
    """Length to which examples are packed; a longer example is cut at its end, and counted."""
    packing: bool = True
    """Whether examples are concatenated into sequences, without attention between them; otherwise each is padded to the longest
    of its batch."""
    shuffle_rows: int = Field(default=16_384, gt=0)
    """Rows of the buffer that shuffles an epoch; shards are also read in a random order."""
    micro_batch_tokens: int = execution_field(8192, gt=0)
    """Tokens, padding included, that one worker holds at a time; gradients accumulate until the batch is whole."""
    loss_chunk_tokens: int = execution_field(1024, gt=0)
    """Response tokens whose logits are in memory at once."""
    seed: int | None = None
    """Seed of the order of examples, dropout and adapters; by default the recipe's. Another seed retrains on the same signals."""
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """Low-rank adapters; by default all parameters are trained."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of parameters: `auto` is bfloat16 on GPUs and float32 on CPUs. Master weights are float32."""
    attention: Attention = execution_field("auto")
    """Attention function: `varlen` takes the bounds of packed examples and needs no mask; the others are Transformers'. `auto` uses
    `varlen` if the target's attention allows it, else the best that Transformers has for the target; training prints which."""
    validation_rows: int = Field(default=64, ge=0)
    """Held-out rows on which bits per byte of both modes are measured at every checkpoint; at most a tenth of all rows."""
    checkpoint_every_steps: int = execution_field(100, gt=0)
    """Updates between two checkpoints."""
    keep_checkpoints: int = execution_field(2, gt=0)
    """Number of checkpoints kept, those with the lowest held-out bits per byte; the last one is also kept."""
    export: Literal["last", "best"] = "last"
    """Weights that become the fused model: the last, or those of the checkpoint with the lowest held-out bits per byte."""
    guards: GuardConfig = GuardConfig()
    memory: MemoryConfig = execution_field(MemoryConfig())
    workers: WorkersConfig = execution_field(WorkersConfig())

    @property
    def round_starts(self) -> tuple[Fraction, ...]:
        """Progress at which each round begins that has answers of its own; the first begins at 0."""
        return round_starts(self.schedule, self.rounds)

    @property
    def num_rounds(self) -> int:
        """Number of rounds that have answers of their own, the first included."""
        return len(self.round_starts)

    @field_validator("schedule")
    @classmethod
    def _schedule_is_whole(cls, value: tuple[SchedulePiece, ...]) -> tuple[SchedulePiece, ...]:
        check_pieces(value)
        return value

    @model_validator(mode="after")
    def _own_answers_have_a_divergence(self) -> "FuseConfig":
        if uses(self.schedule, "on_policy") and self.kl_positions == "ahead":
            raise ValueError(
                "kl_positions: ahead leaves out what the target says and the teacher would not, which on_policy unlearns; set all"
            )
        return self

    @model_validator(mode="after")
    def _rounds_are_used(self) -> "FuseConfig":
        if self.rounds > 1 and self.num_rounds == 1:
            raise ValueError(
                "rounds: more than one renews the target's answers for on_policy, which the schedule does not train after the first"
            )
        if isinstance(self.duration, Steps) and self.duration.value < self.rounds:
            raise ValueError(
                f"rounds: {self.rounds} rounds of {self.duration.value} updates leave one without any; set fewer"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_packed(self) -> "FuseConfig":
        if uses(self.schedule, "preference") and not self.packing:
            raise ValueError("schedule: preference needs packing: true, which keeps the answers of a pair together")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> "FuseConfig":
        if self.export == "best" and self.validation_rows == 0:
            raise ValueError("export: best needs validation_rows above 0, to choose the best checkpoint")
        return self


def round_end(config: FuseConfig, num_steps: int, number: int) -> int:
    """Returns the update before which a round ends, of `num_steps` in all rounds; rounds are numbered from 1."""
    return math.ceil(num_steps * [*config.round_starts, 1][number])


def count_steps(config: FuseConfig, num_tokens: int) -> int:
    """Returns the updates of a run over `num_tokens` tokens of examples: as configured, or enough for the epochs."""
    if isinstance(config.duration, Epochs):
        return max(1, math.ceil(config.duration.value * num_tokens / config.batch_tokens))
    return config.duration.value
