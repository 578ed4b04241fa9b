"""A run's artifacts up to the fused model: where each is stored, and the settings and inputs that determine it.

With `fuse.rounds` above 1, a round after the first has examples of its own, made from the target's answers of that round; corpus,
votes and teachers are the same in all rounds.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import (
    ANSWER_VOCABULARY_SIZE,
    CONTAMINATED,
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
from profuser.evaluation.benchmarks.checks import data_digest
from profuser.evaluation.benchmarks.questions import benchmark_questions
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.models import SourceConfig
from profuser.recipe.rewards import VOTE_SETTINGS, RewardConfig
from profuser.rewards.kinds import kind_of
from profuser.run.inputs import RunInputs, corpus_digest
from profuser.signals.codec import CODEC_VERSION
from profuser.storage.folder import Folder

NO_ROWS = pa.schema([])
MODEL, TRAINING_METRICS = "model", "metrics.jsonl"
"""Contents of the artifact of `fuse`: the fused model's folder, and a file with one line per update."""
ROUNDS = "rounds"
"""Folder and stage of what later rounds have of their own, and of the models between them."""


def round_part(round_number: int, name: str) -> str:
    """Returns the name of what a round has of its own, `rounds/2/select`."""
    return f"{ROUNDS}/{round_number}/{name}"


def _in_round(name: str, round_number: int) -> str:
    return round_part(round_number, name) if round_number > 1 else name


@dataclass(frozen=True)
class FusingArtifacts(RunInputs):
    """The artifacts of everything that makes the fused model. A `round_number` counts from 1."""

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

    def collect(self, source: SourceConfig, round_number: int = 1) -> Artifact:
        """Returns the artifact of one source's signals; in later rounds only the target is read again, as it is then."""
        setting = source.setting
        how = self.reading(source)
        config: dict[str, Any] = {
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
        facts = self.facts(source) if source.lacks_tokenizer else None
        own_vocabulary = facts is not None and facts.top_logprobs is not None
        if own_vocabulary:
            config["vocabulary"] = "of each row's answers"
        size = ANSWER_VOCABULARY_SIZE if own_vocabulary else self.vocab_size(setting)
        schema = collect_schema(size, how.top_k > 0, own_vocabulary)
        inputs = [self.corpus()]
        if round_number > 1:
            del config["model"]
            inputs.append(self.fuse(round_number - 1))
        return self._artifact(_in_round(f"collect/{source.name}", round_number), schema, config, inputs)

    def source_path(self, source: SourceConfig, round_number: int = 1) -> str:
        """Returns the path of the model that reads as a source; in later rounds, of the target as the round before left it."""
        return (self.fuse(round_number - 1).folder / MODEL).uri if round_number > 1 else self.model(source).path

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

    def signals(self, source: SourceConfig, round_number: int = 1) -> Artifact:
        """Returns the artifact of one source's distributions over the responses that it was chosen to teach, for lazy signals; in
        later rounds, over the target's answers of the round."""
        size = self.vocab_size(source.setting)
        config = self._choice_config | {"vocab_size": size, "top_k": self.recipe.collect.top_k, "codec": CODEC_VERSION}
        with_steps = self.recipe.select.condition == "exact"
        if with_steps:
            # The target's tokens determine which candidates are used up.
            config |= self._target_config
        inputs = [*self._collected(), *self._scored(), *self.own_answers(round_number)]
        return self._artifact(
            _in_round(f"signals/{source.name}", round_number), signals_schema(size, with_steps), config, inputs
        )

    def own_answers(self, round_number: int) -> list[Artifact]:
        """Returns the artifact of the target's answers in a later round; none in the first, where the target is as any source."""
        return [self.collect(source, round_number) for source in self.recipe.answering] if round_number > 1 else []

    def own_signals(self, round_number: int) -> list[Artifact]:
        """Returns the artifacts of the teachers' distributions over the target's answers in a later round; none in the first."""
        return [self.signals(source, round_number) for source in self.recipe.readers] if round_number > 1 else []

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

    def select(self, round_number: int = 1) -> Artifact:
        """Returns the artifact of a round's training examples, each with its teacher's distributions in the target's vocabulary."""
        config: dict[str, Any] = self._choice_config | self._target_config
        config |= {
            "vocab_size": self.vocab_size("target.model"),
            "top_k": self.recipe.collect.top_k,
            "codec": CODEC_VERSION,
        }
        schema = select_schema(self.vocab_size("target.model"))
        lazy = self.recipe.sources if self.recipe.collect.signals == "lazy" else ()
        inputs = [*self._collected(), *self._scored(), *(self.signals(source) for source in lazy)]
        inputs += [*self.own_answers(round_number), *self.own_signals(round_number)]
        return self._artifact(_in_round("select", round_number), schema, config, inputs)

    def fuse(self, round_number: int | None = None) -> Artifact:
        """Returns the artifact of the fused model in `model/`, with `metrics.jsonl`: of the last round, or as a round leaves it."""
        last = self.recipe.fuse.num_rounds
        round_number = round_number or last
        if round_number in self._between:
            return self._between[round_number]
        config = {
            "fuse": identity(self.recipe.fuse),
            "target": self.model_digests["target.model"],
            "seed": self.recipe.training_seed,
        }
        before = [self.fuse(round_number - 1)] if round_number > 1 else []
        stage = "fuse" if round_number == last else round_part(round_number, "fuse")
        found = self._artifact(stage, NO_ROWS, config, [self.select(round_number), *before])
        if round_number < last:
            self._between[round_number] = found
        return found

    @cached_property
    def _between(self) -> dict[int, Artifact]:
        """Models between rounds, by the round that leaves them. Each round's artifacts follow from them several times over."""
        return {}

    @cached_property
    def _benchmark_digests(self) -> dict[str, str]:
        return {benchmark.name: data_digest(benchmark) for benchmark in self.recipe.evaluate.benchmarks}

    @property
    def fused_model(self) -> Folder:
        """Folder of the fused model."""
        return self.fuse().folder / MODEL

    def _collected(self) -> list[Artifact]:
        return [self.collect(source) for source in self.recipe.sources]

    def _scored(self) -> list[Artifact]:
        return [self.rewards(reward) for reward in self.recipe.rewards]

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
