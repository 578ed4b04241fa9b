"""A run: the artifacts that make the fused model, and those that measure it. Needs only the recipe."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import (
    BENCHMARK,
    EVALUATE,
    JUDGE,
    with_verdicts,
)
from profuser.config import identity
from profuser.evaluation.benchmarks.checks import check_data
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.kinds import kind_of
from profuser.run.fusing_artifacts import NO_ROWS, FusingArtifacts
from profuser.run.stages import FUSED, REGISTRY, STAGES, TARGET


@dataclass(frozen=True)
class FusionRun(FusingArtifacts):
    """A recipe and the folder that holds its results."""

    def check_inputs(self) -> None:
        """Raises UserError unless the corpus, all models and the benchmarks' data exist."""
        super().check_inputs()
        for benchmark in self.recipe.evaluate.benchmarks:
            if any(self.benchmark(name, benchmark).manifest() is None for name in self.benchmarked()):
                check_data(benchmark)

    # The artifacts, each with the settings and inputs that determine it.

    def evaluate(self, name: str) -> Artifact:
        """Returns the artifact of a model's answers to the held-out rows, with scores: `target`, `fused`, or a source's name."""
        config: dict[str, Any] = {
            "evaluate": {k: v for k, v in identity(self.recipe.evaluate).items() if k not in ("judged", "benchmarks")},
            "template": identity(self.template(self.evaluated_config(name))),
        }
        inputs = [self.heldout()]
        if name == FUSED:
            inputs.append(self.fuse())
        else:
            config["model"] = self.model_digests[self._setting(name)]
        return self._artifact(f"evaluate/{name}", EVALUATE, config, inputs)

    def benchmark(self, name: str, benchmark: BenchmarkConfig) -> Artifact:
        """Returns the artifact of a benchmark's items under one model: `target`, `fused`, or a source's name."""
        config: dict[str, Any] = {
            "benchmark": identity(benchmark) | {"num_fewshot": benchmark.shots},
            "data": self._benchmark_digests[benchmark.name],
            "engine": identity(self.evaluated_config(name).engine),
            "lm_eval": version("lm_eval"),
        }
        if benchmark.apply_chat_template:
            config["template"] = identity(self.template(self.evaluated_config(name)))
        if name == FUSED:
            return self._artifact(f"benchmarks/{name}/{benchmark.name}", BENCHMARK, config, [self.fuse()])
        config["model"] = self.model_digests[self._setting(name)]
        return self._artifact(f"benchmarks/{name}/{benchmark.name}", BENCHMARK, config)

    def judge(self, reward: RewardConfig) -> Artifact:
        """Returns the artifact of one reward's scores of all evaluated models' held-out answers."""
        config = self._reward_config(reward) | {"models": self.evaluated()}
        schema = with_verdicts(JUDGE) if kind_of(reward).keeps_verdicts else JUDGE
        return self._artifact(f"judge/{reward.name}", schema, config, [self.heldout(), *self.artifacts("evaluate")])

    def report(self) -> Artifact:
        """Returns the artifact of tables, plots and the HTML page."""
        results = [a for stage in ("evaluate", "benchmarks", "judge") for a in self.artifacts(stage)]
        inputs = [self.select(), self.fuse(), *results]
        return self._artifact("report", NO_ROWS, {}, inputs)

    def evaluated(self) -> list[str]:
        """Returns the evaluated models in table order. A source that is also the target is evaluated only once."""
        others = [s.name for s in self.recipe.sources if not self.recipe.is_target(s)]
        return [TARGET, *(others if self.recipe.evaluate.sources else []), FUSED]

    def evaluated_config(self, name: str) -> ModelConfig:
        """Returns the settings of an evaluated model: `target`, `fused` (it uses the target's settings), or a source's name."""
        if name in (TARGET, FUSED):
            return self.recipe.target
        return next(source for source in self.recipe.sources if source.name == name)

    def _setting(self, name: str) -> str:
        """Returns the key of an evaluated model's digest."""
        config = self.evaluated_config(name)
        return config.setting if isinstance(config, SourceConfig) else "target.model"

    def benchmarked(self) -> list[str]:
        """Returns the models on which benchmarks run: the evaluated ones, without endpoints, which are not loaded."""
        configs = {name: self.evaluated_config(name) for name in self.evaluated()}
        return [name for name, config in configs.items() if not (isinstance(config, SourceConfig) and config.endpoint)]

    def evaluated_model(self, name: str) -> tuple[str, ModelConfig]:
        """Returns the path and settings of an evaluated model: `target`, `fused` or a source's name."""
        config = self.evaluated_config(name)
        return (self.fused_model.uri if name == FUSED else self.model(config).path), config

    def artifacts(self, stage: str) -> list[Artifact]:
        """Returns all artifacts of a stage."""
        return [artifact for part in REGISTRY[stage].parts(self) for artifact in part.make()]

    def all_artifacts(self) -> list[Artifact]:
        """Returns all artifacts of the run, in stage order."""
        return [artifact for stage in STAGES for artifact in self.artifacts(stage)]
