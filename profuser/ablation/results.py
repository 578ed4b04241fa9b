"""What an ablation measured: every model and arm on the same held-out rows, and how it compares with the arms held against it.

Legend: S seeds of an arm, N held-out rows that no model refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from profuser.ablation.arms import PROGRESSIVE, SFT_GT, Ablation
from profuser.artifacts.artifact import Artifact
from profuser.errors import UserError
from profuser.evaluation import comparison as items
from profuser.report.measures import BITS_PER_BYTE, METRICS, Metric
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED, TARGET

ORACLE = "oracle per row"
TARGET_TITLE = "target before"
REFERENCES = (SFT_GT, PROGRESSIVE)
UNMATCHED, NOT_AFTER_HOLM = "not step-matched", "not after Holm"
TOKENS_TOLERANCE = 0.05
"""An update holds `fuse.batch_tokens` less what the next row would have taken: arms differ by that much in their tokens."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A model, the oracle or an arm on the held-out rows."""

    name: str
    kind: str
    """`model`, `oracle`, `schedule` or `ablation`."""
    bits: Float[np.ndarray, "S N"]
    """Of the ground-truth response."""
    correct: Bool[np.ndarray, "S N"]
    updates: tuple[int, ...] = ()
    """Of each seed; none where nothing was trained."""
    tokens: tuple[int, ...] = ()
    """Prompt and response tokens of all updates, of each seed."""
    about: str = ""

    def values(self, metric: Metric) -> Float[np.ndarray, "S N"]:
        """Numerators of a metric per row, in its unit."""
        return self.bits if metric is BITS_PER_BYTE else 100.0 * self.correct

    def trained_as_long_as(self, other: "Measured") -> bool:
        """Whether all seeds of both made as many updates, of nearly as many tokens; a model that was not trained matches all."""
        if not (self.updates and other.updates):
            return True
        mine, others = np.array(self.tokens), np.array(other.tokens)
        close = (np.abs(mine[:, None] - others) <= TOKENS_TOLERANCE * others).all()
        return len({*self.updates, *other.updates}) == 1 and bool(close)


@dataclass(frozen=True)
class ArmDifference:
    """A row of the table against an arm, in one metric: this row's value less the other's."""

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    """Adjusted for all comparisons with the same arm in the same metric."""
    verdict: str
    """`better`, `worse`, `within noise`, or `not after Holm`: its own interval excludes 0, as one of so many may by chance."""

    @classmethod
    def of(cls, found: items.Contrast) -> "ArmDifference":
        """As `contrasts` finds it; noise that only Holm's correction makes of a difference is called so."""
        by_itself, verdict = found.difference.verdict(larger_is_better=found.larger_is_better), found.verdict
        numbers = (found.difference.value, found.difference.low, found.difference.high)
        return cls(*numbers, found.p_value, found.adjusted_p_value, verdict if by_itself == verdict else NOT_AFTER_HOLM)

    def text(self, metric: Metric) -> str:
        """`-0.012 [-0.020, -0.004] better`."""
        low, high = (metric.text(bound, sign=True) for bound in (self.low, self.high))
        return f"{metric.text(self.difference, sign=True)} [{low}, {high}] {self.verdict}"


@dataclass(frozen=True)
class Results:
    """All that the table shows."""

    measured: tuple[Measured, ...]
    num_bytes: Int[np.ndarray, "N"]
    comparisons: Mapping[tuple[str, str, str], ArmDifference | None]
    """By metric, row and reference; None where the numbers of updates or tokens differ."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.num_bytes)

    @property
    def references(self) -> list[str]:
        """The arms held against all others, as far as they are done."""
        return [name for name in REFERENCES if any(each.name == name for each in self.measured)]

    def per_seed(self, each: Measured, metric: Metric) -> Float[np.ndarray, "S"]:
        """A metric of each seed, over all rows."""
        weight = self.num_bytes if metric is BITS_PER_BYTE else np.ones(self.num_rows)
        return each.values(metric).sum(axis=1) / weight.sum()


def gather_results(ablation: Ablation) -> Results:
    """Reads what the base and the finished arms measured, and compares.

    Raises:
        UserError: the base has not measured target and sources yet, or no row is common to all models.
    """
    models = [name for name in ablation.base.evaluated() if name != FUSED]
    missing = [name for name in models if ablation.shared[f"evaluate/{name}"].manifest() is None]
    if missing:
        raise UserError(f"{ablation.base.recipe.name}: {missing[0]} is not measured yet; run the ablation first")
    done = ablation.finished()
    finished = {arm: [each for each in done if each.arm == arm] for arm in ablation.arms}
    tables = {_title(name): [_whole(ablation.shared[f"evaluate/{name}"])] for name in models}
    tables |= {
        a.name: [_whole(each.parts[f"evaluate/{FUSED}"]) for each in runs] for a, runs in finished.items() if runs
    }
    scored = items.heldout_metrics(tables)
    if not scored:
        raise UserError("there is no held-out row that every model could take")
    bits, correct = ({name: found.values[name] for name in tables} for found in scored)
    out = [Measured(name, "model", bits[name], correct[name] == 1) for name in map(_title, models)]
    out += _oracle(ablation.base, dict(zip(models, out, strict=True)))
    for arm, runs in finished.items():
        if runs:
            kind = "ablation" if arm.is_ablation else "schedule"
            made = zip(*(_trained(each.parts["fuse"]) for each in runs), strict=True)
            out.append(Measured(arm.name, kind, bits[arm.name], correct[arm.name] == 1, *made, about=arm.about))
    num_bytes = np.asarray(scored[0].denominators).astype(np.int64)
    return Results(tuple(out), num_bytes, compare_all(out, num_bytes))


def compare_all(
    measured: Sequence[Measured], num_bytes: Int[np.ndarray, "N"]
) -> dict[tuple[str, str, str], ArmDifference | None]:
    """Every row against each reference in each metric: paired bootstrap, verdicts after Holm's correction."""
    out: dict[tuple[str, str, str], ArmDifference | None] = {}
    for metric in METRICS:
        weight = num_bytes.astype(np.float64) if metric is BITS_PER_BYTE else None
        for reference in (each for each in measured if each.name in REFERENCES):
            others = [each for each in measured if each is not reference]
            matched = [each for each in others if each.trained_as_long_as(reference)]
            values = {each.name: each.values(metric) for each in (*matched, reference)}
            scored = items.Metric(metric.name, metric.higher_is_better, values, weight)
            found = items.contrasts(scored, [(each.name, reference.name) for each in matched])
            out |= {(metric.name, each.name, reference.name): None for each in others}
            out |= {(metric.name, each.model, each.baseline): ArmDifference.of(each) for each in found}
    return out


def _whole(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(artifact.tables())


def _title(model: str) -> str:
    """What a model of the base is called in the table."""
    return TARGET_TITLE if model == TARGET else model


def _oracle(base: FusionRun, models: Mapping[str, Measured]) -> list[Measured]:
    """For every row the source that is best at it, as only its ground truth tells: what a perfect choice among them would give."""
    names = [TARGET if base.recipe.is_target(source) else source.name for source in base.recipe.sources]
    sources = [models[name] for name in names if name in models]
    if len(sources) < 2:
        return []
    bits = np.min([each.bits for each in sources], axis=0)
    correct = np.any([each.correct for each in sources], axis=0)
    return [Measured(ORACLE, "oracle", bits, correct)]


def _trained(fuse: Artifact) -> tuple[int, int]:
    """Updates of a run, and prompt and response tokens of all."""
    history = [json.loads(line) for line in fuse.folder.read_bytes("metrics.jsonl").decode().splitlines()]
    return len(history), sum(int(update["sequence_tokens"]) for update in history)
