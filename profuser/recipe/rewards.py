"""The recipe section of rewards, which judge the sources' answers: reward models, verifiers, and how their votes are counted."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from profuser.config import Config, Name, Pattern, execution_field, later_field
from profuser.recipe.resources import PoolConfig
from profuser.recipe.template import OwnTemplate, TemplateConfig


class _Judge(Config):
    """Settings common to all kinds of rewards."""

    kind: str
    name: Name
    """Name of this reward in artifacts, tables and plots."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of its vote; with 0 it is scored and reported, but decides nothing. Changing it reruns no model."""
    categories: tuple[str, ...] | None = later_field(None, min_length=1)
    """Categories (`corpus.category_field`) whose rows it judges; by default all rows. On other rows it has no vote."""
    except_categories: tuple[str, ...] | None = later_field(None, min_length=1)
    """Categories whose rows it does not judge; instead of `categories`. It judges rows without a category."""
    pool: PoolConfig = execution_field(PoolConfig())

    @property
    def num_devices(self) -> int:
        """GPUs that one actor needs for a model; 0 for a verifier, which runs none."""
        return 0

    @property
    def rejects_up_to(self) -> float | None:
        """Reward up to which an answer is rejected; None if it rejects none."""
        return None

    def judges(self, category: str | None) -> bool:
        """Returns whether it judges rows of a category."""
        if self.categories is not None:
            return category in self.categories
        return self.except_categories is None or category not in self.except_categories

    @model_validator(mode="after")
    def _one_choice_of_categories(self) -> "_Judge":
        if self.categories and self.except_categories:
            raise ValueError(f"{self.name}: categories and except_categories exclude each other; remove one")
        return self


class _Verifier(_Judge):
    """Settings common to all verifiers."""

    accept_above: float | None = later_field(0.0, allow_inf_nan=False)
    """Reward above which it accepts an answer. An answer that every verifier of its row rejects does not teach, whatever reward
    models say; with null it rejects none. A verifier of weight 0 rejects nothing. Changing it reruns no model."""

    @property
    def rejects_up_to(self) -> float | None:
        """Reward up to which an answer is rejected; None if it rejects none."""
        return self.accept_above


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


class RewardModelConfig(_Judge):
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


class LastNumberConfig(_Verifier):
    """A verifier: 1 if the answer and the ground truth have the same last number, else 0.

    Numbers are parsed as people write them: `1,234.50`, `-3`, `$5`, `12 %`, `6.02e23`. A comma separates groups of three digits;
    `$` and `%` are units and change nothing.
    """

    kind: Literal["last_number"]
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest difference between two numbers that count as equal."""


class ExactMatchConfig(_Verifier):
    """A verifier: 1 if the whole answer equals the ground truth, else 0."""

    kind: Literal["exact_match"]
    ignore_whitespace: bool = True
    """Whether each run of whitespace counts as one space, and whitespace at the ends is ignored."""
    ignore_case: bool = False
    """Whether upper and lower case count as equal."""


class AnswerMatchConfig(_Verifier):
    """A verifier: 1 if the answer and the ground truth have the same final part, else 0."""

    kind: Literal["answer_match"]
    pattern: Pattern
    """Regular expression whose first group is the final part, e.g. `#### (-?[0-9.,]+)`."""


class CallableConfig(_Verifier):
    """A user-defined verifier: a Python function `(messages, answer, response) -> float`, higher is better.

    `messages` is the prompt as a list of `{"role": ..., "content": ...}`, `answer` a source's answer, `response` the ground truth.
    A turn that calls tools has `tool_calls` in OpenAI's form, with arguments as objects; a tool's result has the role `tool`.
    """

    kind: Literal["callable"]
    path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """`package.module:function`; the module must be installed or on PYTHONPATH, on every node."""


class ChrfConfig(_Verifier):
    """A verifier: chrF of the answer against the ground truth, 0 to 1 (sacreBLEU's, which prints it times 100).

    An F-score over character n-grams (Popovic, 2015); it needs no words, so it suits every script, and code.
    """

    kind: Literal["chrf"]
    char_order: int = Field(default=6, gt=0)
    """Longest character n-gram."""
    word_order: int = Field(default=0, ge=0)
    """Longest word n-gram; 2 is chrF++."""
    beta: int = Field(default=2, gt=0)
    """Weight of recall: above 1, leaving something out costs more than adding something."""


class RougeLConfig(_Verifier):
    """A verifier: ROUGE-L of the answer against the ground truth, 0 to 1 (rouge-score's F-measure).

    The longest common subsequence of words (Lin, 2004). Words are runs of `a-z` and `0-9`: it does not judge a row whose ground
    truth has none, such as one in Chinese; `chrf` does.
    """

    kind: Literal["rouge_l"]
    stem: bool = False
    """Whether words are stemmed (Porter), for English."""


VerifierConfig = LastNumberConfig | ExactMatchConfig | AnswerMatchConfig | CallableConfig | ChrfConfig | RougeLConfig
RewardConfig = Annotated[RewardModelConfig | VerifierConfig, Field(discriminator="kind")]


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
