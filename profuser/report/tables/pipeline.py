"""Summarises the pipeline for a report: each stage in a few words, and the time, device-hours and cost of every part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from profuser.corpus.decontaminate import contamination_lines
from profuser.corpus.mix import parts_line
from profuser.corpus.prepare import unused_line
from profuser.report.facts import RunFacts, StageFact
from profuser.run.stages import REGISTRY, stage_name

COUNTED = {
    "training_tokens": "tokens of ground truths",
    "inference_tokens": "tokens of answers",
    "answers": "answers scored",
    "verdicts": "verdicts",
    "items": "items answered",
    "pairs": "pairs judged",
    "examples": "examples",
    "tokens": "response tokens",
    "steps": "updates",
}
"""Counts that describe a stage, summed over its parts, in the order shown."""
OWN_COLUMNS = ("rows", "tokens")
"""Counts with their own column."""
DEVICE_HOURS = (
    "A device is a GPU, or a CPU in a stage without GPUs. Device-hours are counted from when an actor starts loading to its last "
    "result, over all attempts; a stage without actors has none."
)


@dataclass(frozen=True)
class FlowStep:
    """One stage with all its parts, in words."""

    name: str
    parts: str
    """Number and kind of its parts; empty if it has only one."""
    phrases: tuple[str, ...]
    """Results, a phrase each."""
    time: str
    share: float
    """Share of the time of all stages, 0 to 1."""
    reused: bool
    """Whether another run produced all of it."""


@dataclass(frozen=True)
class StageLine:
    """One part of the pipeline, as text."""

    name: str
    note: str
    """State if it is not finished, or the run that it was taken from."""
    state: str
    rows: str
    tokens: str
    time: str
    device_hours: str
    money: str
    also: str
    """Other counts and metrics, in one phrase."""


def flow(facts: RunFacts) -> list[FlowStep]:
    """Returns the stages in order, each with all its parts."""
    groups = [(name, list(parts)) for name, parts in groupby(facts.stages, lambda stage: stage_name(stage.name))]
    steps = []
    for name, parts in groups:
        own = [part for part in parts if part.reused_from is None]
        seconds = sum(part.seconds for part in (own or parts))
        share = seconds / facts.seconds if own and facts.seconds else 0.0
        what = REGISTRY[name].plural
        made_of = f"{len(parts)} {what}" if what and len(parts) > 1 else ""
        time = format_duration(seconds) if seconds else ""
        steps.append(FlowStep(name, made_of, tuple(_phrases(name, parts)), time, share, not own))
    return steps


def _phrases(name: str, parts: Sequence[StageFact]) -> list[str]:
    counts = {part.name: part.counts for part in parts}
    if report := REGISTRY[name].report:
        return report(counts)
    sums = {key: int(sum(found.get(key, 0) for found in counts.values())) for key in COUNTED}
    phrases = [f"{sums[key]:,} {words}" for key, words in COUNTED.items() if sums[key]]
    most = int(max((found.get("rows", 0) for found in counts.values()), default=0))
    return [*([f"{most:,} rows{' each' if len(parts) > 1 else ''}"] if most else []), *phrases]


def stage_lines(facts: RunFacts) -> list[StageLine]:
    """Returns a line per part with its counts, time and cost."""
    hours, money = (_decimals(values) for values in (_hours(facts.stages), _moneys(facts.stages)))
    return [_line(stage, hours, money) for stage in facts.stages]


def _line(stage: StageFact, hours: int, money: int) -> StageLine:
    counts = {name: f"{stage.counts[name]:,.0f}" if name in stage.counts else "" for name in OWN_COLUMNS}
    return StageLine(
        name=stage.name,
        note=f"taken from run {stage.reused_from}" if stage.reused_from else _unfinished(stage.state),
        state=stage.state,
        **counts,
        time=format_duration(stage.seconds) if stage.seconds else "",
        device_hours=f"{stage.device_hours:,.{hours}f}" if stage.device_seconds else "",
        money=f"{stage.money:,.{money}f}" if stage.money else "",
        also=_other_counts(stage),
    )


def _unfinished(state: str) -> str:
    return "" if state == "finished" else state


def total_line(facts: RunFacts) -> StageLine:
    """Returns the totals over the parts that this run produced itself."""
    hours, money = _hours(facts.own_stages), _moneys(facts.own_stages)
    return StageLine(
        name="all of this run" if len(facts.own_stages) < len(facts.stages) else "all",
        note="",
        state="finished",
        rows="",
        tokens="",
        time=format_duration(facts.seconds) if facts.seconds else "",
        device_hours=f"{sum(hours):,.{_decimals(_hours(facts.stages))}f}" if hours else "",
        money=f"{sum(money):,.{_decimals(_moneys(facts.stages))}f}" if money else "",
        also="",
    )


def format_duration(seconds: float) -> str:
    """Formats a duration in a suitable unit: `31.4 s`, `4.3 min`, `2.5 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _hours(stages: Sequence[StageFact]) -> list[float]:
    return [stage.device_hours for stage in stages if stage.device_seconds]


def _moneys(stages: Sequence[StageFact]) -> list[float]:
    return [stage.money for stage in stages if stage.money]


def _decimals(values: Sequence[float]) -> int:
    """Returns the decimals of a column, 2 to 4, that show its smallest value with two significant digits."""
    smallest = min(values, default=1.0)
    return min(4, max(2, 1 - math.floor(math.log10(smallest))))


def cost_words(facts: RunFacts) -> list[str]:
    """Returns notes on the costs, a sentence each."""
    plan: Mapping[str, object] = facts.recipe.get("plan") or {}
    held = [stage for stage in facts.own_stages if stage.device_seconds]
    unpriced = [stage.name for stage in held if stage.price_per_device_hour is None]
    words = ["Times of stages that ran concurrently are added up."] if facts.seconds else []
    if held:
        words.append(DEVICE_HOURS)
    paid = {stage.name: stage.token_money for stage in facts.own_stages if stage.token_money}
    if paid:
        decimals = _decimals([*paid.values()])
        each = ", ".join(f"{name} {money:,.{decimals}f}" for name, money in paid.items())
        words.append(
            f"Of the money, for tokens of endpoints by their servers' counts ({plan.get('currency', 'USD')}): {each}."
        )
    if held and len(unpriced) == len(held) and not paid:
        words.append("No cost is shown: the recipe names no price (plan.price_per_device_hour).")
    elif held and len(unpriced) < len(held):
        prices = sorted({s.price_per_device_hour for s in held if s.price_per_device_hour is not None})
        each = ", ".join(f"{price:g}" for price in prices)
        words.append(f"Money: device-hours at the recipe's price of {each} {plan.get('currency', 'USD')} each.")
        if unpriced:
            words.append(f"The recipe names no price for {', '.join(unpriced)}.")
    reused = sorted({stage.reused_from for stage in facts.stages if stage.reused_from})
    if reused:
        words.append(f"Stages taken from run {', '.join(reused)} are not in the totals.")
    return words


def _other_counts(stage: StageFact) -> str:
    """Lists counts and metrics without a column; those with a slash (`wins/...`) have their own section."""
    counts = [
        f"{name.replace('_', ' ')} {value:,.0f}"
        for name, value in stage.counts.items()
        if name not in OWN_COLUMNS and "/" not in name
    ]
    metrics = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in stage.metrics.items() if "/" not in name]
    return ", ".join([*counts, *metrics])


def corpus_words(facts: RunFacts) -> list[str]:
    """States the parts of the corpus, what decontamination dropped, and what of the records is not used; a line each."""
    counts = next((stage.counts for stage in facts.stages if stage.name == "prepare/train"), {})
    return [line for line in (parts_line(counts), *contamination_lines(counts), unused_line(counts)) if line]
