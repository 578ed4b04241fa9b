"""A run's artifacts: where each is stored, and the settings and inputs that determine it. Needs only the recipe."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import (
    BENCHMARK,
    CONTAMINATED,
    EVALUATE,
    JUDGE,
    QUARANTINE,
    REWARDS,
    collect_schema,
    corpus_schema,
    select_schema,
    signals_schema,
    with_verdicts,
)
from profuser.config import identity
from profuser.corpus.split import Questions
from profuser.engines.base import ReadSettings
from profuser.evaluation.benchmarks.checks import check_data, data_digest
from profuser.evaluation.benchmarks.questions import benchmark_questions
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.rewards import VOTE_SETTINGS, RewardConfig
from profuser.rewards.kinds import kind_of
from profuser.run.inputs import RunInputs, corpus_digest
from profuser.run.stages import FUSED, REGISTRY, STAGES, TARGET
from profuser.signals.codec import CODEC_VERSION
from profuser.storage.folder import Folder

NO_ROWS = pa.schema([])
MODEL, TRAINING_METRICS = "model", "metrics.jsonl"
"""Contents of the artifact of `fuse`: the fused model's folder, and a file with one line per update."""


@dataclass(frozen=True)
class FusionRun(RunInputs):
    """A recipe and the folder that holds its results."""

    def check_inputs(self) -> None:
        """Raises UserError unless the corpus, all models and the benchmarks' data exist."""
        super().check_inputs()
        for benchmark in self.recipe.evaluate.benchmarks:
            if any(self.benchmark(name, benchmark).manifest() is None for name in self.benchmarked()):
                check_data(benchmark)

    # The artifacts, each with the settings and inputs that determine it.

    def corpus(self) -> Artifact:
        """Returns the artifact of accepted training rows."""
        return self._artifact("prepare/train", corpus_schema(self.recipe.corpus.columns), self._prepare_config)

    def heldout(self) -> Artifact:
        """Returns the artifact of accepted held-out rows."""
        return self._artifact("prepare/heldout", corpus_schema(self.recipe.corpus.columns), self._prepare_config)

    def quarantine(self) -> Artifact:
        """Returns the artifact of quarantined corpus rows, with file, line and reason."""
        return self._artifact("prepare/quarantine", QUARANTINE, self._prepare_config)

    def contaminated(self) -> Artifact | None:
        """Returns the artifact of training rows dropped by decontamination; None without it."""
        if not self.recipe.corpus.decontaminate:
            return None
        return self._artifact("prepare/contaminated", CONTAMINATED, self._prepare_config)

    def prepared(self) -> list[Artifact]:
        """Returns all artifacts of the corpus, the training rows first."""
        return [self.corpus(), self.heldout(), self.quarantine(), *([found] if (found := self.contaminated()) else [])]

    def benchmark_questions(self) -> Questions:
        """Returns the questions that decontamination compares the corpus with; raises UserError if a benchmark cannot be read."""
        if not self.recipe.corpus.decontaminate:
            return {}
        return {each.name: benchmark_questions(each) for each in self.recipe.evaluate.benchmarks}

    @cached_property
    def _prepare_config(self) -> dict[str, Any]:
        digests = {name: corpus_digest(path) for name, path in self.corpus_paths.items()}
        config = {"corpus": identity(self.recipe.corpus), "digests": digests, "seed": self.recipe.seed}
        return config | ({"questions": self._benchmark_digests} if self.recipe.corpus.decontaminate else {})

    def reading(self, source: SourceConfig) -> ReadSettings:
        """Returns the settings for reading corpus rows with a source."""
        collect = self.recipe.collect
        generation = source.generation or collect.generation
        return ReadSettings(generation, collect.stored_top_k, self.recipe.seed, collect.samples_per_source)

    def collect(self, source: SourceConfig) -> Artifact:
        """Returns the artifact of one source's signals."""
        setting = source.setting
        how = self.reading(source)
        config = {
            "model": self.model_digests[setting],
            "tokenizer": self.tokenizer_digest(setting),
            "vocab_size": self.vocab_size(setting),
            "engine": identity(source.engine),
            "template": identity(self.template(source)),
            "top_k": how.top_k,
            "generation": identity(how.generation),
            "samples": how.num_samples,
            "seed": how.seed,
            "codec": CODEC_VERSION,
        }
        schema = collect_schema(self.vocab_size(setting), with_topk=how.top_k > 0)
        return self._artifact(f"collect/{source.name}", schema, config, [self.corpus()])

    def rewards(self, reward: RewardConfig) -> Artifact:
        """Returns the artifact of one reward's scores of all sources' answers."""
        config = self._reward_config(reward) | {"sources": [source.name for source in self.recipe.sources]}
        schema = with_verdicts(REWARDS) if kind_of(reward).keeps_verdicts else REWARDS
        return self._artifact(f"rewards/{reward.name}", schema, config, self._collected())

    def _reward_config(self, reward: RewardConfig) -> dict[str, Any]:
        """Returns the settings that determine a reward's scores. Those of the vote are not among them."""
        settings = identity(self.reward(reward))
        config: dict[str, Any] = {"reward": {k: v for k, v in settings.items() if k not in VOTE_SETTINGS}}
        if f"rewards.{reward.name}.model" in self.model_digests:
            config["model"] = self.model_digests[f"rewards.{reward.name}.model"]
        elif isinstance(reward, LlmJudgeConfig):
            config["model"] = self.endpoint_digest(reward)
        return config | kind_of(reward).digests(reward)

    def signals(self, source: SourceConfig) -> Artifact:
        """Returns the artifact of one source's distributions over the responses that it was chosen to teach; for lazy signals."""
        size = self.vocab_size(source.setting)
        config = self._choice_config | {"vocab_size": size, "top_k": self.recipe.collect.top_k, "codec": CODEC_VERSION}
        with_steps = self.recipe.select.condition == "exact"
        if with_steps:
            # The target's tokens determine which candidates are used up.
            config |= self._target_config
        inputs = [*self._collected(), *self.artifacts("rewards")]
        return self._artifact(f"signals/{source.name}", signals_schema(size, with_steps), config, inputs)

    @property
    def _target_config(self) -> dict[str, Any]:
        """Settings that determine the target's tokens of a response."""
        template = identity(self.template(self.recipe.target))
        return {"tokenizer": self.tokenizer_digest("target.model"), "template": template}

    @property
    def _choice_config(self) -> dict[str, Any]:
        """Settings that determine which source teaches which row."""
        rewards = self.recipe.rewards
        accept = {r.name: own["accept_above"] for r in rewards if "accept_above" in (own := identity(r))}
        return {
            "select": identity(self.recipe.select),
            "teachers": [teacher.name for teacher in self.recipe.teachers],
            "weights": {reward.name: reward.weight for reward in rewards},
        } | ({"accept_above": accept} if accept else {})

    def select(self) -> Artifact:
        """Returns the artifact of training examples, each with its teacher's distributions in the target's vocabulary."""
        config: dict[str, Any] = self._choice_config | self._target_config
        config |= {
            "vocab_size": self.vocab_size("target.model"),
            "top_k": self.recipe.collect.top_k,
            "codec": CODEC_VERSION,
        }
        schema = select_schema(self.vocab_size("target.model"))
        inputs = [*self._collected(), *self.artifacts("rewards"), *self.artifacts("signals")]
        return self._artifact("select", schema, config, inputs)

    def fuse(self) -> Artifact:
        """Returns the artifact of the fused model in `model/`, with `metrics.jsonl`."""
        config = {
            "fuse": identity(self.recipe.fuse),
            "target": self.model_digests["target.model"],
            "seed": self.recipe.training_seed,
        }
        return self._artifact("fuse", NO_ROWS, config, [self.select()])

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

    @cached_property
    def _benchmark_digests(self) -> dict[str, str]:
        return {benchmark.name: data_digest(benchmark) for benchmark in self.recipe.evaluate.benchmarks}

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

    @property
    def fused_model(self) -> Folder:
        """Folder of the fused model."""
        return self.fuse().folder / MODEL

    def artifacts(self, stage: str) -> list[Artifact]:
        """Returns all artifacts of a stage."""
        return [artifact for part in REGISTRY[stage].parts(self) for artifact in part.make()]

    def all_artifacts(self) -> list[Artifact]:
        """Returns all artifacts of the run, in stage order."""
        return [artifact for stage in STAGES for artifact in self.artifacts(stage)]

    def _collected(self) -> list[Artifact]:
        return [self.collect(source) for source in self.recipe.sources]

    def _artifact(
        self, stage: str, schema: pa.Schema, config: dict[str, Any], inputs: list[Artifact] | None = None
    ) -> Artifact:
        marks = {artifact.stage: artifact.fingerprint for artifact in inputs or []}
        own = Artifact(self.folder / stage, stage, schema, config, marks)
        return self._made_elsewhere(own) if self.recipe.reuse else own

    def _made_elsewhere(self, own: Artifact) -> Artifact:
        """Returns the same artifact of another run, if that run has finished it and this one has not."""
        if own.fingerprint not in self._found:
            if own.manifest() is not None:
                return own
            for name in self.recipe.reuse:
                other = replace(own, folder=Folder.at(self.recipe.storage) / name / own.stage)
                manifest = other.manifest()
                if manifest and manifest.fingerprint == own.fingerprint:
                    self._found[own.fingerprint] = other
                    break
        return self._found.get(own.fingerprint, own)

    @cached_property
    def _found(self) -> dict[str, Artifact]:
        """Reused artifacts of other runs, by fingerprint."""
        return {}
