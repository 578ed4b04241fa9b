"""The result of a run in words: better, worse or no change, never more than the numbers say."""

import math
from dataclasses import dataclass

from profuser.report.facts import RunFacts
from profuser.report.metrics import METRICS, Change
from profuser.run import FUSED, TARGET

CAUTION = (
    "This is one run with one seed: there is no interval, and a small difference may be chance. "
    "Repeat it with other seeds, and beside its controls, before you rely on it."
)


@dataclass(frozen=True)
class Finding:
    """One sentence and what it amounts to."""

    verdict: str
    """`better`, `worse`, `no change` or `unknown`."""
    text: str


@dataclass(frozen=True)
class Headline:
    """What to say first."""

    title: str
    findings: tuple[Finding, ...]
    """One per metric."""
    notes: tuple[str, ...]


def headline(facts: RunFacts) -> Headline:
    """Compares the fused model with the target before fusion, and with the best source, on all held-out rows."""
    changes = [Change.of(facts, metric) for metric in METRICS]
    findings = (_bits_per_byte(changes[0]), _exact_match(facts, changes[1]))
    return Headline(_title(changes), findings, (*_best_source(facts), CAUTION))


def _bits_per_byte(change: Change) -> Finding:
    if change.verdict == "unknown":
        return Finding("unknown", "Bits per byte is not known for both models.")
    before, after = (change.metric.text(value) for value in (change.before, change.after))
    moved = {"better": "fell to", "worse": "rose to", "no change": "stayed at"}[change.verdict]
    return Finding(change.verdict, f"Bits per byte {moved} {after} from {before} ({change.text}).")


def _exact_match(facts: RunFacts, change: Change) -> Finding:
    if change.verdict == "unknown":
        return Finding("unknown", "Exact match is not known for both models.")
    before, after = (change.metric.text(value) for value in (change.before, change.after))
    moved = {"better": "rose to", "worse": "fell to", "no change": "stayed at"}[change.verdict]
    pair = (facts.score(FUSED), facts.score(TARGET))
    rows = [round(score.exact_match * score.num_rows) for score in pair]
    difference = f"{change.text} points, {rows[0]:,} rows right instead of {rows[1]:,}"
    return Finding(change.verdict, f"Exact match {moved} {after} % from {before} % ({difference}).")


def _title(changes: list[Change]) -> str:
    names = {change.verdict: change.metric.name for change in changes}
    verdicts = names.keys() - {"unknown"}
    if not verdicts:
        return "Nothing is known yet of the fused model against the target"
    if verdicts == {"no change"}:
        return "The fused model is no better and no worse than the target before fusion"
    if {"better", "worse"} <= verdicts:
        return f"The fused model is better in {names['better']} but worse in {names['worse']} than the target before fusion"
    verdict = "better" if "better" in verdicts else "worse"
    where = "" if len(names) == 1 else f" in {names[verdict]}"
    return f"The fused model is {verdict}{where} than the target before fusion"


def _best_source(facts: RunFacts) -> list[str]:
    """A sentence on the fused model against the best single model before fusion, per metric."""
    out = []
    for metric in METRICS:
        values = {model: metric.of(facts.score(model)) for model in facts.models}
        fused = values.pop(FUSED, math.nan)
        known = {model: value for model, value in values.items() if math.isfinite(value)}
        if len(known) < 2 or not math.isfinite(fused):
            continue
        best = (max if metric.higher_is_better else min)(known, key=lambda model: known[model])
        if best == TARGET:
            continue
        verdict = metric.verdict(known[best], fused)
        place = {"better": "better than", "worse": "worse than", "no change": "level with"}[verdict]
        out.append(
            f"In {metric.name} the best single model before fusion is {facts.label(best)} "
            f"({metric.text(known[best])}{metric.unit}); the fused model ({metric.text(fused)}{metric.unit}) is {place} it."
        )
    return out
