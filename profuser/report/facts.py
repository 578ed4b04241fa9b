"""What a report shows, as plain data: whoever has a run's artifacts fills a `RunFacts`, and all else here only reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profuser.artifacts.schemas import MODES
from profuser.evaluation.heldout import Score
from profuser.evaluation.judged import JudgedWinRate
from profuser.evaluation.statistics import Difference, Estimate
from profuser.planning.plan_file import PlanError
from profuser.run.stages import TARGET
from profuser.selection.summary import SelectionFacts
from profuser.signals.rules import RULES

ALL = "all"
"""The category that holds every held-out row."""
UNKNOWN = Score(0, float("nan"), float("nan"))


@dataclass(frozen=True)
class StageFact:
    """One stage of the pipeline."""

    name: str
    """The stage and part, e.g. `collect/llama`."""
    state: str
    """`waiting`, `running`, `finished` or `failed`."""
    seconds: float = 0.0
    counts: Mapping[str, float] = field(default_factory=dict)
    """Rows, tokens and the like."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = 0.0
    """Seconds that its actors held devices, times the devices of each; 0 where it holds none."""
    price_per_device_hour: float | None = None
    """Of its devices, in the recipe's `plan.currency`; None where the recipe names no price."""
    reused_from: str | None = None
    """The run that made it, where that is another one: it cost this run nothing."""

    @property
    def device_hours(self) -> float:
        """Device-hours that it held."""
        return self.device_seconds / 3600

    @property
    def money(self) -> float | None:
        """What its device-hours cost; None where no price is named."""
        return None if self.price_per_device_hour is None else self.price_per_device_hour * self.device_hours


@dataclass(frozen=True)
class WinRow:
    """How often one source was chosen as the teacher."""

    source: str
    training: int
    """Examples in training mode."""
    inference: int
    """Examples in inference mode."""


@dataclass(frozen=True)
class PairCoverage:
    """How one source's tokens and distributions reached the target."""

    source: str
    rules: Mapping[str, int]
    """Target tokens that it teaches, by alignment rule."""
    vocabulary: Mapping[str, int]
    """Tokens of its vocabulary, by the rule that finds their counterpart (`ProjectionRule`)."""
    misspelt: int
    """Rows refused because its tokens spell other bytes than the ground truth."""


@dataclass(frozen=True)
class ModelDifference:
    """The fused model's value less another model's on the same items, in the unit that it is told in (percent for shares)."""

    measure: str
    """Name of a held-out metric or of a benchmark."""
    category: str
    model: str
    """The other one."""
    difference: Difference
    p_value: float
    """Of no difference, adjusted for the number of other models (Holm)."""
    verdict: str
    """`better`, `worse` or `within noise`."""


@dataclass(frozen=True)
class RunFacts:
    """A run, as a report shows it. Whatever a run has not come to yet is empty."""

    name: str
    recipe: Mapping[str, Any]
    """The whole recipe in JSON form."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What of the recipe is not left at its default."""
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[StageFact, ...] = ()
    """In the order of the pipeline."""
    scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """`{category: {model: score}}`, with every row under `all`; models in order: `target`, the sources, `fused`."""
    comparisons: Sequence[ModelDifference] = ()
    """The fused model against every other one, with 95 % intervals: held-out metrics, then benchmarks."""
    benchmarks: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Scores in percent with 95 % intervals: `{benchmark: {model: estimate}}`."""
    judged: Mapping[str, Mapping[str, JudgedWinRate]] = field(default_factory=dict)
    """How often the fused model's answers are preferred: `{judge: {other model: rate}}`, the majority first."""
    source_is_target: str | None = None
    """Name of the source that is the target."""
    history: Sequence[Mapping[str, float]] = ()
    """What each update did: `StepMetrics.known()`."""
    selection_counts: Mapping[str, float] = field(default_factory=dict)
    """Counts and metrics of the select stage: `wins/MODE/SOURCE`, `rule/NAME`, `alignment/SOURCE/NAME`,
    `vocabulary/SOURCE/NAME`, `misspelt/SOURCE`, `rows`, `examples`, `tokens`, `not_aligned`, `misspelt_by_target`."""
    quarantined: Sequence[Mapping[str, Any]] = ()
    """Refused corpus rows, all or the first ones: `file`, `line`, `reason`, `excerpt`."""
    quarantine_reasons: Mapping[str, int] = field(default_factory=dict)
    """Of all refused rows, how many for each reason, the most frequent first."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Held-out rows: `prompt`, `response` (the ground truth), `answers` (`{model: text}`), `category`, and where
    it is known `correct` (`{model: whether the answer is right}`)."""
    vote_agreement: float | None = None
    """Of the votes cast, the share that went to the answer that won, 0 to 1."""
    selection: SelectionFacts | None = None
    """Who beats whom, and who agrees with whom."""
    plan_errors: Sequence[PlanError] = ()
    """What a probe had planned and what came of it; empty for a run that was not probed."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that were evaluated, in order."""
        return tuple(self.scores.get(ALL, {}))

    @property
    def categories(self) -> tuple[str, ...]:
        """`all`, then every category; empty where nothing was evaluated."""
        return (ALL, *(name for name in self.scores if name != ALL)) if self.models else ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the recipe's order."""
        return tuple(source["name"] for source in self.recipe.get("sources", ()))

    def score(self, model: str, category: str = ALL) -> Score:
        """A model's score; zero rows and NaN where there is none."""
        return self.scores.get(category, {}).get(model, UNKNOWN)

    def comparison(self, measure: str, model: str = TARGET, category: str = ALL) -> ModelDifference | None:
        """The fused model against another one; None where that is not known."""
        return next(
            (c for c in self.comparisons if (c.measure, c.category, c.model) == (measure, category, model)), None
        )

    def num_rows(self, category: str = ALL) -> int:
        """Held-out rows of a category; all models are given the same."""
        return max((score.num_rows for score in self.scores.get(category, {}).values()), default=0)

    def label(self, model: str) -> str:
        """What a model is called in tables and plots."""
        if model == TARGET and self.source_is_target:
            return f"{TARGET} ({self.source_is_target})"
        return model

    def source_label(self, source: str) -> str:
        """What a source is called where teachers are counted: where the target itself wins, it learns little new."""
        return f"{source} (target)" if source == self.source_is_target else source

    @property
    def own_stages(self) -> tuple[StageFact, ...]:
        """The stages without those that another run made."""
        return tuple(stage for stage in self.stages if stage.reused_from is None)

    @property
    def seconds(self) -> float:
        """Wall times of all its own stages together; some may have run side by side."""
        return sum(stage.seconds for stage in self.own_stages)

    @property
    def num_quarantined(self) -> int:
        """Corpus rows that were refused, those that are not listed included."""
        counted = sum(stage.counts.get("quarantined", 0) for stage in self.stages)
        return max(int(counted), len(self.quarantined))

    def wins(self) -> list[WinRow]:
        """Examples per source and mode."""
        names = list(dict.fromkeys(k.split("/", 2)[2] for k in self.selection_counts if k.startswith("wins/")))
        return [WinRow(name, *(int(self.selection_counts.get(f"wins/{m}/{name}", 0)) for m in MODES)) for name in names]

    def target_wins(self) -> dict[str, float]:
        """Share of each mode's examples that the target itself teaches, 0 to 1; empty where it is no source."""
        wins = self.wins()
        own = next((row for row in wins if row.source == self.source_is_target), None)
        totals = {mode: sum(getattr(row, mode) for row in wins) for mode in MODES}
        return {mode: getattr(own, mode) / total for mode, total in totals.items() if total} if own else {}

    def coverage(self) -> dict[str, int]:
        """Target tokens per alignment rule; empty where nothing was aligned."""
        found = {rule: int(self.selection_counts.get(f"rule/{rule}", 0)) for rule in RULES}
        return found if sum(found.values()) else {}

    def pair_coverage(self) -> list[PairCoverage]:
        """The same for each source that taught something, with what became of its vocabulary."""
        out = []
        for source in self.sources:
            rules = {rule: int(self.selection_counts.get(f"alignment/{source}/{rule}", 0)) for rule in RULES}
            prefix = f"vocabulary/{source}/"
            found = self.selection_counts.items()
            vocabulary = {name.removeprefix(prefix): int(n) for name, n in found if name.startswith(prefix)}
            misspelt = int(self.selection_counts.get(f"misspelt/{source}", 0))
            if sum(rules.values()):
                out.append(PairCoverage(source, rules, vocabulary, misspelt))
        return out
