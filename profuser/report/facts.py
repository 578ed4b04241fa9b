"""Plain data behind a report: the caller fills a `RunFacts` from a run's artifacts, and the report code only reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profuser.artifacts.schemas import MODES
from profuser.evaluation.heldout import ALL, Score
from profuser.evaluation.judged import JudgedWinRate
from profuser.evaluation.statistics import Difference, Estimate
from profuser.evaluation.writing import Writing
from profuser.planning.plan_file import PlanError
from profuser.run.stages import TARGET
from profuser.selection.summary import SelectionFacts
from profuser.signals.rules import RULES

UNKNOWN = Score(0, float("nan"), float("nan"))


@dataclass(frozen=True)
class StageFact:
    """One stage of the pipeline."""

    name: str
    """Stage and part, e.g. `collect/llama`."""
    state: str
    """`waiting`, `running`, `finished` or `failed`."""
    seconds: float = 0.0
    counts: Mapping[str, float] = field(default_factory=dict)
    """Rows, tokens and other counts."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = 0.0
    """Seconds that its actors held devices, times the devices of each; 0 if it holds none."""
    price_per_device_hour: float | None = None
    """Price of its devices in the recipe's `plan.currency`; None if the recipe sets no price."""
    token_money: float | None = None
    """Price of the tokens that an endpoint counted, in the same currency; None without an endpoint or its price."""
    reused_from: str | None = None
    """Name of the other run that produced it, at no cost to this run; None if this run did."""

    @property
    def device_hours(self) -> float:
        """Device-hours held."""
        return self.device_seconds / 3600

    @property
    def money(self) -> float | None:
        """Cost of its device-hours and of an endpoint's tokens; None if there is no price."""
        if self.price_per_device_hour is None and self.token_money is None:
            return None
        return (self.price_per_device_hour or 0.0) * self.device_hours + (self.token_money or 0.0)


@dataclass(frozen=True)
class WinRow:
    """Number of examples that one source teaches."""

    source: str
    training: int
    """Examples in training mode."""
    inference: int
    """Examples in inference mode."""


@dataclass(frozen=True)
class PairCoverage:
    """Alignment of one source with the target, in counts."""

    source: str
    rules: Mapping[str, int]
    """Target tokens that it teaches, by alignment rule."""
    vocabulary: Mapping[str, int]
    """Tokens of its vocabulary, by the rule that maps them to the target's (`ProjectionRule`)."""
    misspelt: int
    """Rows refused because its tokens do not spell the bytes of the ground truth."""


@dataclass(frozen=True)
class ModelDifference:
    """The fused model's value minus another model's on the same items, in the unit of the report (percent for shares)."""

    measure: str
    """Name of a held-out metric or of a benchmark."""
    category: str
    model: str
    """Name of the other model."""
    difference: Difference
    p_value: float
    """P-value of no difference, adjusted for the number of other models (Holm)."""
    verdict: str
    """`better`, `worse` or `within noise`."""


@dataclass(frozen=True)
class RunFacts:
    """Everything that a report shows of a run. Fields of stages that have not run yet are empty."""

    name: str
    recipe: Mapping[str, Any]
    """Whole recipe in JSON form."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recipe settings that differ from their defaults."""
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[StageFact, ...] = ()
    """Stages in pipeline order."""
    scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Scores as `{category: {model: score}}`, all rows under `all`; models in order: `target`, the sources, `fused`."""
    writing: Mapping[str, Writing] = field(default_factory=dict)
    """How each model writes its held-out answers, in the order of the scores."""
    comparisons: Sequence[ModelDifference] = ()
    """Differences of the fused model from every other one, with 95 % intervals: held-out metrics, then benchmarks."""
    benchmarks: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Scores in percent with 95 % intervals: `{benchmark: {model: estimate}}`."""
    judged: Mapping[str, Mapping[str, JudgedWinRate]] = field(default_factory=dict)
    """Win rates of the fused model's answers: `{judge: {other model: rate}}`, the majority vote first."""
    judged_by_category: Mapping[str, Mapping[str, JudgedWinRate]] = field(default_factory=dict)
    """Win rates under the majority vote: `{category: {other model: rate}}`, without `all`."""
    taught: Mapping[str, Mapping[tuple[str, str], int]] = field(default_factory=dict)
    """Examples that each source teaches: `{category: {(mode, source): number}}`, without `all`."""
    aligned: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Response tokens by alignment rule: `{category: {rule: tokens}}`, without `all`."""
    source_is_target: str | None = None
    """Name of the source that is the target."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of each update, from `StepMetrics.known()`."""
    selection_counts: Mapping[str, float] = field(default_factory=dict)
    """Counts and metrics of the select stage: `wins/MODE/SOURCE`, `rule/NAME`, `alignment/SOURCE/NAME`,
    `vocabulary/SOURCE/NAME`, `misspelt/SOURCE`, `rows`, `examples`, `tokens`, `not_aligned`, `misspelt_by_target`."""
    quarantined: Sequence[Mapping[str, Any]] = ()
    """Refused corpus rows, all or the first ones: `file`, `line`, `reason`, `excerpt`."""
    quarantine_reasons: Mapping[str, int] = field(default_factory=dict)
    """Number of refused rows per reason, the most frequent first."""
    contaminated: Sequence[Mapping[str, Any]] = ()
    """First training rows dropped by decontamination: `row_id`, `source_file`, `source_line`, `found_in`, `phrase`."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Held-out rows: `prompt`, `response` (the ground truth), `answers` (`{model: text}`), `category`, and if
    known `correct` (`{model: whether the answer is correct}`)."""
    vote_agreement: float | None = None
    """Share of the votes cast that went to the winning answer, 0 to 1."""
    selection: SelectionFacts | None = None
    """Pairwise win rates of the sources and agreement of the judges."""
    selection_by_category: Mapping[str, SelectionFacts] = field(default_factory=dict)
    """The same of each category; empty without categories."""
    plan_errors: Sequence[PlanError] = ()
    """Planned and measured quantities; empty if the run was not probed."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Parts of optional stages that failed, e.g. `benchmarks/fused/mmlu`, with the reasons."""

    @property
    def models(self) -> tuple[str, ...]:
        """Evaluated models, in order."""
        return tuple(self.scores.get(ALL, {}))

    @property
    def categories(self) -> tuple[str, ...]:
        """`all`, then every category; empty if nothing was evaluated."""
        return (ALL, *(name for name in self.scores if name != ALL)) if self.models else ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the recipe's order."""
        return tuple(source["name"] for source in self.recipe.get("sources", ()))

    def score(self, model: str, category: str = ALL) -> Score:
        """Returns a model's score; zero rows and NaN if there is none."""
        return self.scores.get(category, {}).get(model, UNKNOWN)

    def comparison(self, measure: str, model: str = TARGET, category: str = ALL) -> ModelDifference | None:
        """Returns the comparison of the fused model with another one; None if there is none."""
        return next(
            (c for c in self.comparisons if (c.measure, c.category, c.model) == (measure, category, model)), None
        )

    def num_rows(self, category: str = ALL) -> int:
        """Returns the number of held-out rows of a category; it is the same for all models."""
        return max((score.num_rows for score in self.scores.get(category, {}).values()), default=0)

    def label(self, model: str) -> str:
        """Returns a model's name in tables and plots."""
        if model == TARGET and self.source_is_target:
            return f"{TARGET} ({self.source_is_target})"
        return model

    def source_label(self, source: str) -> str:
        """Returns a source's name in counts of teachers, marking the target itself: from its own wins it learns little new."""
        return f"{source} (target)" if source == self.source_is_target else source

    @property
    def own_stages(self) -> tuple[StageFact, ...]:
        """Stages that this run executed itself."""
        return tuple(stage for stage in self.stages if stage.reused_from is None)

    @property
    def seconds(self) -> float:
        """Sum of the wall times of its own stages; some may have run concurrently."""
        return sum(stage.seconds for stage in self.own_stages)

    @property
    def num_quarantined(self) -> int:
        """Number of refused corpus rows, including those not listed."""
        counted = sum(stage.counts.get("quarantined", 0) for stage in self.stages)
        return max(int(counted), len(self.quarantined))

    def wins(self) -> list[WinRow]:
        """Returns the number of examples per source and mode."""
        names = list(dict.fromkeys(k.split("/", 2)[2] for k in self.selection_counts if k.startswith("wins/")))
        return [WinRow(name, *(int(self.selection_counts.get(f"wins/{m}/{name}", 0)) for m in MODES)) for name in names]

    def target_wins(self) -> dict[str, float]:
        """Returns the share of each mode's examples that the target itself teaches, 0 to 1; empty if it is not a source."""
        wins = self.wins()
        own = next((row for row in wins if row.source == self.source_is_target), None)
        totals = {mode: sum(getattr(row, mode) for row in wins) for mode in MODES}
        return {mode: getattr(own, mode) / total for mode, total in totals.items() if total} if own else {}

    def coverage(self) -> dict[str, int]:
        """Returns the number of target tokens per alignment rule; empty if nothing was aligned."""
        found = {rule: int(self.selection_counts.get(f"rule/{rule}", 0)) for rule in RULES}
        return found if sum(found.values()) else {}

    def pair_coverage(self) -> list[PairCoverage]:
        """Returns target tokens by rule, and vocabulary by projection rule, for each source that taught something."""
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
