"""Gathers the results of an ablation: every model and arm on the same held-out rows, compared with the reference arms.

Legend: S seeds of an arm, N held-out rows that no model refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from profuser.ablation.answers import AnswerWinRates, answer_win_rates
from profuser.ablation.arms import PROGRESSIVE, SFT_GT, Ablation, ArmRun
from profuser.artifacts.artifact import Artifact
from profuser.errors import UserError
from profuser.evaluation import comparison as items
from profuser.evaluation.heldout import ALL, common_rows
from profuser.report.comparisons import PERCENT
from profuser.report.measures import BITS_PER_BYTE, METRICS, Metric
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED, STAGES, TARGET, stage_name

ORACLE = "oracle per row"
TARGET_TITLE = "target before"
REFERENCES = (SFT_GT, PROGRESSIVE)
UNMATCHED, NOT_AFTER_HOLM = "not step-matched", "not after Holm"
TOKENS_TOLERANCE = 0.05
"""Tolerated relative difference in tokens: an update stops before the row that would exceed `fuse.batch_tokens`."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A model, the oracle or an arm on the held-out rows."""

    name: str
    kind: str
    """`model`, `oracle`, `schedule` or `ablation`."""
    bits: Float[np.ndarray, "S N"]
    """Bits of the ground-truth response; NaN if the model cannot teacher-force."""
    correct: Bool[np.ndarray, "S N"]
    updates: tuple[int, ...] = ()
    """Updates of each seed; empty if nothing was trained."""
    tokens: tuple[int, ...] = ()
    """Prompt and response tokens over all updates, of each seed."""
    device_hours: tuple[float, ...] = ()
    """Device-hours held by each seed's own stages until the model was trained. What runs share counts where it was made."""
    about: str = ""

    def values(self, metric: Metric) -> Float[np.ndarray, "S N"]:
        """Returns the numerators of a metric per row: bits, or 1 for a right answer."""
        return self.bits if metric is BITS_PER_BYTE else self.correct.astype(np.float64)

    def trained_as_long_as(self, other: "Measured") -> bool:
        """Returns whether all seeds of both made equally many updates on about as many tokens; an untrained model matches all."""
        if not (self.updates and other.updates):
            return True
        mine, others = np.array(self.tokens), np.array(other.tokens)
        close = (np.abs(mine[:, None] - others) <= TOKENS_TOLERANCE * others).all()
        return len({*self.updates, *other.updates}) == 1 and bool(close)


@dataclass(frozen=True)
class ArmDifference:
    """Difference between a row of the table and a reference arm in one metric: the row's value minus the arm's."""

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    """P-value adjusted for all comparisons with the same arm in the same metric."""
    verdict: str
    """`better`, `worse`, `within noise`, or `not after Holm`: the interval alone excludes 0, but not after the correction."""

    @classmethod
    def of(cls, found: items.Contrast, unit: float) -> "ArmDifference":
        """Converts a contrast to the metric's unit; where only Holm's correction made it noise, the verdict is `not after Holm`."""
        alone, verdict = found.difference.verdict(larger_is_better=found.larger_is_better), found.verdict
        difference = found.difference.times(unit)
        numbers = (difference.value, difference.low, difference.high)
        return cls(
            *numbers, found.difference.p_value, found.adjusted_p_value, verdict if alone == verdict else NOT_AFTER_HOLM
        )

    def text(self, metric: Metric) -> str:
        """Formats the difference: `-0.012 [-0.020, -0.004] better`."""
        low, high = (metric.text(bound, sign=True) for bound in (self.low, self.high))
        return f"{metric.text(self.difference, sign=True)} [{low}, {high}] {self.verdict}"


@dataclass(frozen=True)
class Results:
    """Everything that the table shows."""

    measured: tuple[Measured, ...]
    num_bytes: Int[np.ndarray, "N"]
    comparisons: Mapping[tuple[str, str, str], ArmDifference | None]
    """Difference by metric, row and reference; None if the numbers of updates or tokens differ, or the metric is not known."""
    categories: Mapping[str, Bool[np.ndarray, "N"]] = field(default_factory=dict)
    """Which rows belong to each category of the corpus; empty if there are not several."""
    answers: AnswerWinRates = field(default_factory=AnswerWinRates)
    """Win rates of the answers against the target's before, by verifier and row of the table."""

    @property
    def num_rows(self) -> int:
        """Number of rows, N."""
        return len(self.num_bytes)

    @property
    def references(self) -> list[str]:
        """Finished reference arms."""
        return [name for name in REFERENCES if any(each.name == name for each in self.measured)]

    def per_seed(
        self, each: Measured, metric: Metric, rows: Bool[np.ndarray, "N"] | None = None
    ) -> Float[np.ndarray, "S"]:
        """Returns a metric of each seed in its unit, over some rows or all."""
        chosen = np.ones(self.num_rows, dtype=bool) if rows is None else rows
        weight = self.num_bytes if metric is BITS_PER_BYTE else np.ones(self.num_rows)
        return unit_of(metric) * each.values(metric)[:, chosen].sum(axis=1) / weight[chosen].sum()


def unit_of(metric: Metric) -> float:
    """Returns the factor from `Measured.values` to the metric's unit."""
    return 1.0 if metric is BITS_PER_BYTE else PERCENT


def gather_results(ablation: Ablation) -> Results:
    """Reads the measurements of the base and of the measured arms, and compares them.

    Raises:
        UserError: the base has not measured target and sources yet, or no row is common to all models.
    """
    models = [name for name in ablation.base.evaluated() if name != FUSED]
    missing = [name for name in models if ablation.shared[f"evaluate/{name}"].manifest() is None]
    if missing:
        raise UserError(f"{ablation.base.recipe.name}: {missing[0]} is not measured yet; run the ablation first")
    done = ablation.measured()
    finished = {arm: [each for each in done if each.arm == arm] for arm in ablation.arms}
    tables = {_title(name): [_whole(ablation.shared[f"evaluate/{name}"])] for name in models}
    tables |= {
        a.name: [_whole(each.parts[f"evaluate/{FUSED}"]) for each in runs] for a, runs in finished.items() if runs
    }
    scored = items.heldout_metrics(tables)
    if not scored:
        raise UserError("every held-out row was refused by some model")
    bits, correct = scored[0].values, scored[1].values
    # A model that cannot teacher-force has no bits per byte.
    bits = {name: bits.get(name, np.full_like(correct[name], np.nan)) for name in tables}
    out = [Measured(name, "model", bits[name], correct[name] == 1) for name in map(_title, models)]
    out += _oracle(ablation.base, dict(zip(models, out, strict=True)))
    for arm, runs in finished.items():
        if runs:
            kind = "ablation" if arm.is_ablation else "schedule"
            made = zip(*((*_trained(each.parts["fuse"]), _own_hours(each)) for each in runs), strict=True)
            out.append(Measured(arm.name, kind, bits[arm.name], correct[arm.name] == 1, *made, about=arm.about))
    num_bytes = np.asarray(scored[0].denominators).astype(np.int64)
    groups = common_rows({f"{name}/{seed}": t for name, seeds in tables.items() for seed, t in enumerate(seeds)})
    row_ids = sorted(groups.pop(ALL))
    categories = {name: np.isin(row_ids, list(ids)) for name, ids in sorted(groups.items())}
    answers = _compare_answers(ablation.base, tables, row_ids)
    return Results(
        tuple(out), num_bytes, compare_all(out, num_bytes), categories if len(categories) > 1 else {}, answers
    )


def _compare_answers(
    base: FusionRun, tables: Mapping[str, Sequence[pa.Table]], row_ids: Sequence[str]
) -> AnswerWinRates:
    """Compares all answers with the target's before, by each verifier of the recipe."""
    verifiers = [base.reward(reward) for reward in base.recipe.verifiers]
    if not verifiers:
        return AnswerWinRates()
    rows = {row["row_id"]: row for table in base.heldout().tables() for row in table.to_pylist()}
    answers = {name: [_predictions(table, row_ids) for table in seeds] for name, seeds in tables.items()}
    return answer_win_rates(verifiers, [rows[row_id] for row_id in row_ids], answers, TARGET_TITLE)


def _predictions(table: pa.Table, row_ids: Sequence[str]) -> list[str | None]:
    found = dict(zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    return [found[row_id] for row_id in row_ids]


def compare_all(
    measured: Sequence[Measured], num_bytes: Int[np.ndarray, "N"]
) -> dict[tuple[str, str, str], ArmDifference | None]:
    """Compares every row with each reference in each metric: paired by row, verdicts after Holm's correction."""
    out: dict[tuple[str, str, str], ArmDifference | None] = {}
    for metric in METRICS:
        weight = num_bytes.astype(np.float64) if metric is BITS_PER_BYTE else None
        for reference in (each for each in measured if each.name in REFERENCES):
            others = [each for each in measured if each is not reference]
            known = [each for each in others if np.isfinite(each.values(metric)).all()]
            matched = [each for each in known if each.trained_as_long_as(reference)]
            values = {each.name: each.values(metric) for each in (*matched, reference)}
            scored = items.MetricScores(metric.name, metric.higher_is_better, values, weight)
            found = items.contrasts(scored, [(each.name, reference.name) for each in matched])
            out |= {(metric.name, each.name, reference.name): None for each in others}
            out |= {(metric.name, each.model, each.baseline): ArmDifference.of(each, unit_of(metric)) for each in found}
    return out


def _whole(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(artifact.tables())


def _title(model: str) -> str:
    """Returns the table's name of a model of the base."""
    return TARGET_TITLE if model == TARGET else model


def _oracle(base: FusionRun, models: Mapping[str, Measured]) -> list[Measured]:
    """Returns the best source per row given the ground truth: the result of a perfect choice among the sources."""
    names = [TARGET if base.recipe.is_target(source) else source.name for source in base.recipe.sources]
    sources = [models[name] for name in names if name in models]
    if len(sources) < 2:
        return []
    bits = np.fmin.reduce([each.bits for each in sources])
    correct = np.any([each.correct for each in sources], axis=0)
    return [Measured(ORACLE, "oracle", bits, correct)]


def _own_hours(each: ArmRun) -> float:
    """Returns the device-hours of a run's own stages, up to its training."""
    until = STAGES[: STAGES.index("fuse") + 1]
    own = [each.manifest(name) for name in each.parts if stage_name(name) in until]
    return sum(manifest.device_seconds for manifest in own if manifest) / 3600


def _trained(fuse: Artifact) -> tuple[int, int]:
    """Returns the updates of a run, and their prompt and response tokens."""
    history = [json.loads(line) for line in fuse.folder.read_bytes("metrics.jsonl").decode().splitlines()]
    return len(history), sum(int(update["sequence_tokens"]) for update in history)
