"""States the result of a run in words: better, worse or no change, and no more than the numbers support."""

import math
from dataclasses import dataclass

from profuser.evaluation.statistics import BETTER, NOISE, WORSE
from profuser.report.comparisons import in_percent, preference
from profuser.report.facts import RunFacts
from profuser.report.measures import METRICS, SCORE, Change, p_text
from profuser.run.stages import FUSED, TARGET

CAUTION = (
    "This is one run with one seed: there is no interval, and a small difference may be chance. "
    "Repeat it with other seeds, and compare it with its controls, before you rely on it."
)
CAUTION_WITH_INTERVALS = (
    "This is one run with one seed. The 95 % intervals cover the choice of rows, not the choice of seed. "
    "Repeat it with other seeds, and compare it with its controls, before you rely on it."
)


@dataclass(frozen=True)
class Finding:
    """One sentence and its verdict."""

    verdict: str
    """`better`, `worse`, `no change`, `within noise` or `unknown`."""
    text: str


@dataclass(frozen=True)
class Headline:
    """Summary at the top of a report."""

    title: str
    findings: tuple[Finding, ...]
    """One per held-out metric, then one for the benchmarks and one for the judges, if any."""
    notes: tuple[str, ...]


def headline(facts: RunFacts) -> Headline:
    """Compares the fused model with the target before fusion, and with the best source, on all held-out rows."""
    changes = [Change.of(facts, metric) for metric in METRICS]
    findings = [
        _bits_per_byte(changes[0]),
        _exact_match(facts, changes[1]),
        *benchmarks_finding(facts),
        *judged_finding(facts),
    ]
    caution = CAUTION_WITH_INTERVALS if facts.comparisons else CAUTION
    return Headline(_title(changes), tuple(findings), (*_best_source(facts), caution))


def _bits_per_byte(change: Change) -> Finding:
    if change.verdict == "unknown":
        return Finding("unknown", "Bits per byte is not available for both models.")
    before, after = (change.metric.text(value) for value in (change.before, change.after))
    details = [change.text, *_interval(change)]
    return Finding(change.verdict, f"Bits per byte {_moved(change)} {after} from {before} ({', '.join(details)}).")


def _exact_match(facts: RunFacts, change: Change) -> Finding:
    if change.verdict == "unknown":
        return Finding("unknown", "Exact match is not available for both models.")
    before, after = (change.metric.text(value) for value in (change.before, change.after))
    pair = (facts.score(FUSED), facts.score(TARGET))
    rows = [round(score.exact_match * score.num_rows) for score in pair]
    details = [f"{change.text} points", *_interval(change), f"{rows[0]:,} rows correct instead of {rows[1]:,}"]
    return Finding(change.verdict, f"Exact match {_moved(change)} {after} % from {before} % ({', '.join(details)}).")


def _moved(change: Change) -> str:
    if change.metric.verdict(change.before, change.after) == "no change":
        return "stayed at"
    return "rose to" if change.after > change.before else "fell to"


def _interval(change: Change) -> list[str]:
    return [f"95 % interval {change.interval}"] if change.interval else []


def benchmarks_finding(facts: RunFacts) -> list[Finding]:
    """Lists on which benchmarks the fused model is better or worse than the target; empty if none was measured for both."""
    verdicts = {name: found.verdict for name in facts.benchmarks if (found := facts.comparison(name))}
    if not verdicts:
        return []
    parts = [
        f"{verdict} on {', '.join(names)}"
        for verdict in (BETTER, WORSE, NOISE)
        if (names := [name for name, own in verdicts.items() if own == verdict])
    ]
    kinds = set(verdicts.values()) - {NOISE}
    overall = NOISE if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"
    return [Finding(overall, f"Benchmarks: {'; '.join(parts)}.")]


def judged_finding(facts: RunFacts) -> list[Finding]:
    """States how often the vote of the judges prefers the fused model's answers to the target's."""
    rate = next(iter(facts.judged.values()), {}).get(TARGET)
    if rate is None:
        return []
    raw, even = in_percent(rate.raw), in_percent(rate.length_controlled)
    verdict = preference(rate.length_controlled).verdict(larger_is_better=True)
    return [
        Finding(
            verdict,
            f"The judges prefer its answers to the target's on {SCORE.text(even.value)} % of the rows at equal length "
            f"(95 % interval {SCORE.interval(even)}; {SCORE.text(raw.value)} % as they are: {rate.num_won:,} won, "
            f"{rate.num_lost:,} lost, {rate.num_ties:,} tied; sign test: p {p_text(rate.p_value)}).",
        )
    ]


def _title(changes: list[Change]) -> str:
    verdicts = {change.metric.name: change.verdict for change in changes if change.verdict != "unknown"}
    if not verdicts:
        return "The fused model has not been compared with the target yet"
    better, worse = ([name for name, verdict in verdicts.items() if verdict == wanted] for wanted in (BETTER, WORSE))
    if better and worse:
        return f"The fused model is better in {better[0]} but worse in {worse[0]} than the target before fusion"
    if not (better or worse):
        level = "is within noise of" if NOISE in verdicts.values() else "is no better and no worse than"
        return f"The fused model {level} the target before fusion"
    moved = better or worse
    where = "" if len(moved) == len(verdicts) > 1 else f" in {moved[0]}"
    return f"The fused model is {'better' if better else 'worse'}{where} than the target before fusion"


def _best_source(facts: RunFacts) -> list[str]:
    """Compares the fused model with the best single model before fusion, a sentence per metric."""
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
        verdict = Change(metric, known[best], fused, facts.comparison(metric.name, best)).verdict
        place = {BETTER: "better than", WORSE: "worse than", NOISE: "within noise of"}.get(verdict, "level with")
        out.append(
            f"In {metric.name} the best single model before fusion is {facts.label(best)} "
            f"({metric.text(known[best])}{metric.unit}); the fused model ({metric.text(fused)}{metric.unit}) is {place} it."
        )
    return out
