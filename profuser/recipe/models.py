"""The recipe and its sections. Each default is defined in its section and nowhere else."""

from typing import Literal

from pydantic import Field, model_validator

from profuser.config import Config, Name, Pattern, execution_field
from profuser.recipe.evaluating import Benchmarks
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.preparing import CorpusConfig
from profuser.recipe.resources import PlanConfig
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.recipe.schedule import uses
from profuser.recipe.selecting import AVERAGE, SelectConfig
from profuser.recipe.sources import GenerationConfig, ModelConfig, SourceConfig, TargetConfig
from profuser.recipe.template import OwnTemplate, TemplateConfig


class CollectConfig(Config):
    """The sources' pass over the corpus."""

    top_k: int = Field(default=10, ge=1, le=64)
    """Log-probabilities kept per position (FuseLLM keeps 10)."""
    generation: GenerationConfig = GenerationConfig()
    samples_per_source: int = Field(default=1, ge=1)
    """Answers of every source to a row; more than one needs a temperature above 0."""
    signals: Literal["eager", "lazy"] = "eager"
    """`eager` keeps the distributions of everything read and generated; `lazy` first only scores and answers, and then collects the
    distributions of the chosen teachers: a fraction of the disk, for one more pass over the chosen responses."""
    sources_at_once: int | None = execution_field(None, gt=0)
    """Sources that are collected concurrently; by default as many as the cluster has room for when the stage begins."""

    @property
    def stored_top_k(self) -> int:
        """K of the distributions that the first pass keeps; 0 if signals are lazy."""
        return self.top_k if self.signals == "eager" else 0


class EvaluateConfig(Config):
    """Evaluation on the held-out rows, of the target before fusion, every source and the fused model."""

    generation: GenerationConfig = GenerationConfig()
    answer_pattern: Pattern | None = None
    """Regular expression whose first group is the final answer, for exact match; by default whole answers are compared."""
    sources: bool = True
    """Whether the sources are evaluated, not only the target before and after fusion."""
    benchmarks: Benchmarks = ()
    """Benchmarks of the same models: `mmlu`, `hellaswag`, `arc_challenge`, `winogrande`, `gsm8k`, `truthfulqa_mc2`, or
    `open-llm-leaderboard` for the six; each as a name or with settings, and your own tasks."""
    judged: bool = True
    """Whether the rewards judge the answers: how often the fused model's is preferred to the target's and to each source's."""


class TrackingConfig(Config):
    """MLflow. The server's address comes from MLFLOW_TRACKING_URI; without it a SQLite file in the storage is used."""

    experiment: str = execution_field("profuser")
    """Name of the MLflow experiment."""
    registered_model: str | None = execution_field(None)
    """Name of the registered MLflow model that gets the fused model of a finished run as a version: `profuser serve --model
    m=models:/NAME@ALIAS` serves the version that an alias points to."""


class Recipe(Config):
    """A complete fusion run."""

    name: Name
    """Name of the run: the folder in the storage and the MLflow run."""
    storage: str = execution_field("runs")
    """Folder or URI (`s3://`, `gs://`) that holds the runs."""
    reuse: tuple[Name, ...] = execution_field(())
    """Other runs in the storage whose artifacts are used in place, not made again, if they were made with exactly the settings of
    this recipe: the arms of an experiment share one pass of the sources."""
    seed: int = 0
    """Seed of everything random."""
    lab: str | None = execution_field(None)
    """Folder of a built laboratory, for `lab://` paths; by default the one that ships with the package."""
    corpus: CorpusConfig
    template: TemplateConfig = OwnTemplate()
    """Template of all sources and of the target; judges use their own."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    target: TargetConfig
    collect: CollectConfig = CollectConfig()
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    select: SelectConfig = SelectConfig()
    fuse: FuseConfig = FuseConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    plan: PlanConfig = execution_field(PlanConfig())

    @property
    def training_seed(self) -> int:
        """Seed of the stage `fuse`."""
        return self.seed if self.fuse.seed is None else self.fuse.seed

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for what, named in (
            ("sources", self.sources),
            ("rewards", self.rewards),
            ("evaluate.benchmarks", self.evaluate.benchmarks),
        ):
            names = [each.name for each in named]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: the name {twice[0]!r} is used twice")
        corpus = self.corpus
        for reward in self.rewards:
            for name in set(reward.row_fields) - set(corpus.columns):
                where = "corpus.parts[].fields" if corpus.parts else "corpus.fields"
                raise ValueError(
                    f"rewards.{reward.name}: {reward.kind} needs the {name} of each row, which the corpus does not name; set "
                    f"{where}.{name} to the field of the records that holds it"
                )
            if (reward.categories or reward.except_categories) and not (corpus.category_path or corpus.parts):
                key = "categories" if reward.categories else "except_categories"
                raise ValueError(
                    f"rewards.{reward.name}.{key}: the corpus has no categories; set corpus.category_field"
                )
        for judge in self.llm_judges:
            if judge.mode == "pairwise" and len(self.sources) * self.collect.samples_per_source < 2:
                raise ValueError(
                    f"rewards.{judge.name}: mode: pairwise compares answers to one row, and there is only one source with one "
                    "answer; use mode: pointwise"
                )
        if corpus.decontaminate and not (corpus.heldout or corpus.heldout_rows or self.evaluate.benchmarks):
            raise ValueError(
                "corpus.decontaminate has nothing to compare the rows with; set evaluate.benchmarks or corpus.heldout_rows"
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards: every weight is 0, so there would be no votes; give one a weight above 0")
        for source in self.sources:
            generation = source.generation or self.collect.generation
            if self.collect.samples_per_source > 1 and generation.temperature == 0:
                raise ValueError(
                    f"collect.samples_per_source is {self.collect.samples_per_source}, but {source.name} samples at temperature 0, "
                    "which gives the same answer each time; set generation.temperature"
                )
            if self.template_of(source).thinking == "keep" != self.template_of(self.target).thinking:
                raise ValueError(
                    f"sources: the thinking of {source.name} is kept, but the target's template closes thinking, and so would the "
                    "fused model's; set template.thinking: keep for the target too"
                )
        if self.select.condition == "exact" and self.collect.signals == "eager":
            raise ValueError("select.condition: exact needs the stage signals; set collect.signals: lazy")
        if self.select.exclude_target and not self.teachers:
            raise ValueError("select.exclude_target leaves no teacher: the only source is the target")
        if uses(self.fuse.schedule, "training") and all(source.lacks_tokenizer for source in self.teachers):
            raise ValueError(
                "sources: all that may teach are endpoints without a tokenizer, of which none can teach the ground truth; set "
                "endpoint.tokenizer, or a fuse.schedule without the training mode"
            )
        if uses(self.fuse.schedule, "preference") and not self.select.preference:
            raise ValueError(
                "fuse.schedule: preference needs pairs of answers; set select.preference, e.g. to {within: row}"
            )
        if uses(self.fuse.schedule, "on_policy") and not self.select.on_policy:
            raise ValueError(
                "fuse.schedule: on_policy needs the target's answers under the teachers; set select.on_policy: {}"
            )
        if self.select.on_policy:
            if self.collect.signals == "eager":
                raise ValueError(
                    "select.on_policy: teachers read the target's answers in stage signals; set collect.signals: lazy"
                )
            if not any(self.is_target(source) for source in self.sources):
                raise ValueError("select.on_policy: the target must answer; name it as a source too")
            if self.select.on_policy.teacher == AVERAGE:
                if not self.readers:
                    raise ValueError(
                        "select.on_policy.teacher: average needs a source beside the target to read its answers"
                    )
                self._check_no_source_is_named_average("select.on_policy.teacher")
        pairs = self.select.preference
        if pairs and pairs.within == "source" and self.collect.samples_per_source == 1:
            raise ValueError(
                "select.preference: a source that answers once has no pair of answers; set collect.samples_per_source above 1, or "
                "select.preference.within: row"
            )
        if self.select.training_teacher == AVERAGE:
            if self.collect.signals == "lazy":
                raise ValueError(
                    "select.training_teacher: average needs the distributions of all sources; set collect.signals: eager"
                )
            self._check_no_source_is_named_average("select.training_teacher")
        return self

    def _check_no_source_is_named_average(self, setting: str) -> None:
        if AVERAGE in (source.name for source in self.sources):
            raise ValueError(f"sources: with {setting}: average no source may be named 'average'")

    def template_of(self, config: ModelConfig) -> TemplateConfig:
        """Returns the template of a source or of the target."""
        return config.template or self.template

    def is_target(self, source: ModelConfig) -> bool:
        """Returns whether a source is the same model as the target."""
        return (source.model, source.revision) == (self.target.model, self.target.revision)

    @property
    def reward_models(self) -> tuple[RewardModelConfig, ...]:
        """Rewards that are sequence classifiers."""
        return tuple(reward for reward in self.rewards if isinstance(reward, RewardModelConfig))

    @property
    def llm_judges(self) -> tuple[LlmJudgeConfig, ...]:
        """Rewards that are language models."""
        return tuple(reward for reward in self.rewards if isinstance(reward, LlmJudgeConfig))

    @property
    def verifiers(self) -> tuple[RewardConfig, ...]:
        """Rewards without a model."""
        models = RewardModelConfig | LlmJudgeConfig
        return tuple(reward for reward in self.rewards if not isinstance(reward, models))

    @property
    def teachers(self) -> tuple[SourceConfig, ...]:
        """Sources that may teach."""
        return tuple(s for s in self.sources if not (self.select.exclude_target and self.is_target(s)))

    @property
    def answering(self) -> tuple[SourceConfig, ...]:
        """Sources that are the target, whose answers on-policy mode trains: one, or none."""
        return tuple(source for source in self.sources if self.is_target(source))[:1]

    @property
    def readers(self) -> tuple[SourceConfig, ...]:
        """Sources that may read the target's answers."""
        return tuple(source for source in self.teachers if not self.is_target(source))

    def own_share(self, source: SourceConfig) -> float:
        """Returns the share of the target's answers that a source is expected to read for on-policy mode."""
        if self.select.on_policy is None or source not in self.readers:
            return 0.0
        return 1.0 if self.select.on_policy.teacher == AVERAGE else 1 / len(self.teachers)
