"""A recipe's inputs: its folder, corpus and models, checks that they exist, and their digests."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from profuser.artifacts.artifact import digest
from profuser.config import identity
from profuser.corpus import corpus_files
from profuser.corpus.template_text import CLOCK
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.errors import UserError, one_line
from profuser.models.formats import Format
from profuser.models.lab_paths import LAB_FILE, resolve
from profuser.models.reference import BYTE_TOKENIZER, ModelRef
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.models import CorpusConfig, ModelConfig, Recipe, SourceConfig
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.recipe.sources import ServedModelConfig
from profuser.recipe.template import JinjaTemplate, TemplateConfig
from profuser.rewards.kinds import kind_of
from profuser.storage.folder import Folder

BEGAN = "began.json"
"""File in a run's folder with the date on which it began."""
ENDPOINTS = "endpoints.json"
"""File in a run's folder with what each endpoint's server gives, by `ServedModelConfig.facts_key`."""


@dataclass(frozen=True)
class RunInputs:
    """A recipe and its inputs."""

    recipe: Recipe

    @property
    def folder(self) -> Folder:
        """`{storage}/{run}`."""
        return Folder.at(self.recipe.storage) / self.recipe.name

    @property
    def corpus_config(self) -> CorpusConfig:
        """The recipe's section of the corpus, with `lab://` resolved in its paths."""
        config, lab = self.recipe.corpus, self.recipe.lab
        own = {name: path and resolve(path, lab) for name, path in (("path", config.path), ("heldout", config.heldout))}
        parts = tuple(part.model_copy(update={"path": resolve(part.path, lab)}) for part in config.parts)
        return config.model_copy(update={**own, "parts": parts})

    @property
    def corpus_paths(self) -> dict[str, str]:
        """Paths of the corpus or its parts, and of the separate held-out corpus, by their names in digests."""
        config = self.corpus_config
        found = {
            "corpus": config.path,
            **{f"parts.{part.name}": part.path for part in config.parts},
            "heldout": config.heldout,
        }
        return {name: path for name, path in found.items() if path is not None}

    def model(self, config: ModelConfig | RewardModelConfig) -> ModelRef:
        """Returns the reference to a model of the recipe; for an endpoint to its tokenizer."""
        endpoint = config.endpoint if isinstance(config, ServedModelConfig) else None
        location = (endpoint.tokenizer or BYTE_TOKENIZER) if endpoint else config.model
        return ModelRef.of(location, config.revision, self.recipe.lab)

    def check_inputs(self) -> None:
        """Raises UserError unless the corpus and all models exist: everything that can be checked before starting."""
        self.check_lab()
        config = self.corpus_config
        named = [(f"{source.setting}.path", source.path) for source in config.sources]
        for setting, path in (*named, ("corpus.heldout", config.heldout)):
            if path is not None:
                try:
                    corpus_files(path)
                except UserError as error:
                    raise UserError(f"{setting}: {error}") from None
        _ = self.model_digests
        for reward in self.recipe.reward_models:
            if (found := self.model(reward).format) is not Format.PLAIN:
                raise UserError(
                    f"rewards.{reward.name}.model: {reward.model}: a reward model must be plain weights, this is stored as "
                    f"{found.value}; convert it and save it with save_pretrained"
                )
        for reward in self.recipe.rewards:
            kind_of(reward).check(reward)

    def check_lab(self) -> None:
        """Raises UserError if the recipe names a lab that has not been built."""
        lab = self.recipe.lab
        if lab is not None and not (Path(lab).expanduser() / LAB_FILE).is_file():
            raise UserError(f"lab: {lab!r} contains no lab; build one with profuser lab build {lab} --corpus FILE")

    @cached_property
    def model_digests(self) -> dict[str, str]:
        """Digest of each model by its key in the recipe; raises UserError if a model does not exist.

        A source's endpoint's covers its settings, what its server gives (once that is known) and its tokenizer.
        """
        return {setting: self._digest(setting, config) for setting, config in self.models().items()}

    def endpoint_digest(self, judge: LlmJudgeConfig) -> str:
        """Returns the digest of the server of a judge: of its settings, and of what it gives once that is known."""
        return self._digest(f"{judge.section}.endpoint", judge)

    def _digest(self, setting: str, config: ModelConfig | RewardModelConfig) -> str:
        if not isinstance(config, ServedModelConfig) or config.endpoint is None:
            return self.model(config).digest(setting)
        facts = self.facts(config)
        served: dict[str, Any] = {"endpoint": identity(config.endpoint), "gives": facts and facts.identity}
        if isinstance(config, SourceConfig):
            served["tokenizer"] = self.tokenizer_digest(setting)
        return digest(served)

    def facts(self, config: ServedModelConfig) -> EndpointFacts | None:
        """Returns what a model's server gives, as it was found when the run began; None before that, and for a loaded model.

        A run that reuses another takes what that found.
        """
        known = self._facts.get(config.facts_key)
        return known if config.endpoint and known and known.model == config.endpoint.model else None

    @cached_property
    def _facts(self) -> dict[str, EndpointFacts]:
        """Facts of all endpoints, by `ServedModelConfig.facts_key`."""
        found: dict[str, EndpointFacts] = {}
        if any(config.endpoint for config in (*self.recipe.sources, *self.recipe.llm_judges)):
            storage = Folder.at(self.recipe.storage)
            for folder in (*(storage / name for name in reversed(self.recipe.reuse)), self.folder):
                if folder.exists(ENDPOINTS):
                    found |= {name: EndpointFacts(**facts) for name, facts in folder.read_json(ENDPOINTS).items()}
        return found

    def models(self) -> dict[str, ModelConfig | RewardModelConfig]:
        """Returns every model of the recipe by its key."""
        out: dict[str, ModelConfig | RewardModelConfig] = {"target.model": self.recipe.target}
        out |= {source.setting: source for source in self.recipe.sources}
        out |= {f"rewards.{reward.name}.model": reward for reward in self.recipe.reward_models}
        out |= {f"{judge.section}.model": judge for judge in self.recipe.llm_judges if not judge.endpoint}
        return out

    @cached_property
    def day(self) -> str | None:
        """Date on which the run began; None before that, and for a run that began before dates were kept."""
        return self.folder.read_json(BEGAN)["date"] if self.folder.exists(BEGAN) else None

    def template(self, config: ModelConfig) -> TemplateConfig:
        """Returns the template of a source or of the target; one that writes a date, with the run's."""
        return self._dated(self.recipe.template_of(config), config)

    def reward(self, reward: RewardConfig) -> RewardConfig:
        """Returns a reward with what the files that it names hold; a template of its model that writes a date has the run's."""
        found = kind_of(reward).resolve(reward)
        if not isinstance(found, RewardModelConfig | LlmJudgeConfig) or self.reward_path(found) is None:
            return found
        return found.model_copy(update={"template": self._dated(found.template, found)})

    def _dated(self, template: TemplateConfig, config: ModelConfig | RewardModelConfig) -> TemplateConfig:
        if template.date or self.day is None:
            return template
        ref = self.model(config)
        if ref not in self._clocks:
            self._clocks[ref] = CLOCK.encode() in ref.template_files()
        writes = CLOCK in template.text if isinstance(template, JinjaTemplate) else self._clocks[ref]
        return template.model_copy(update={"date": self.day}) if writes else template

    @cached_property
    def _clocks(self) -> dict[ModelRef, bool]:
        """Cache of which models' own templates write a date."""
        return {}

    def vocab_size(self, setting: str) -> int:
        """Returns the width of a model's logits, from its config; for an endpoint's tokenizer without one, the tokenizer's size."""
        if setting not in self._vocab_sizes:
            named = self.models()[setting]
            ref, config = self.model(named), {}
            if isinstance(named, SourceConfig) and named.endpoint and not ref.has_config:
                config["vocab_size"] = _tokenizer_size(ref.path, setting)
            else:
                config = ref.config(setting)
            size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
            if not isinstance(size, int):
                raise UserError(f"{setting}: config.json has no vocab_size")
            self._vocab_sizes[setting] = size
        return self._vocab_sizes[setting]

    @cached_property
    def _vocab_sizes(self) -> dict[str, int]:
        """Cache by the model's key, since every fingerprint needs the sizes."""
        return {}

    def tokenizer_digest(self, setting: str) -> str:
        """Returns the digest of a model's tokenizer files, which are read once."""
        if setting not in self._tokenizer_digests:
            self._tokenizer_digests[setting] = self.model(self.models()[setting]).tokenizer_digest(setting)
        return self._tokenizer_digests[setting]

    @cached_property
    def _tokenizer_digests(self) -> dict[str, str]:
        """Cache by the model's key."""
        return {}

    def reward_path(self, reward: RewardConfig) -> str | None:
        """Returns the path of the model that a reward loads; None for a reward that loads none."""
        if isinstance(reward, LlmJudgeConfig) and reward.endpoint:
            return None
        return self.model(reward).path if isinstance(reward, RewardModelConfig | LlmJudgeConfig) else None


def _tokenizer_size(path: str, setting: str) -> int:
    """Returns the number of ids of a tokenizer without a model's config."""
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}: {path}: no tokenizer can be read there: {one_line(error)}") from None


def corpus_digest(location: str) -> str:
    """Returns sixteen hex digits of the SHA-256 over a corpus's files; for a Hub dataset, over its name."""
    sha = hashlib.sha256()
    files = corpus_files(location)
    if not files:
        sha.update(location.encode())
    for file in files:
        sha.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()[:16]
