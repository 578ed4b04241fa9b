"""Summarises the losses of each stage of the schedule as lines of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from profuser.artifacts.schemas import MODES, ON_POLICY
from profuser.report.facts import RunFacts

ENDS_SHARE = 0.05
"""Share of a stage's updates, at least one, that are averaged for the loss at either end of it."""
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class StageLossLine:
    """One mode in one stage of the schedule, as text."""

    stage: int
    """Number of the stage, from 1."""
    updates: str
    mode: str
    weight: str
    ce: str
    """Cross-entropy from the stage's first updates to its last, nats per token; empty if the mode has no weight. Of preference
    mode, the loss in nats per pair."""
    kl: str
    heldout: str
    """Bits per byte of the rows held out of training, as last measured in the stage."""
    accuracy: str = ""
    """Share of the pairs whose better answer leads, from the stage's first updates to its last."""


def stage_loss_lines(facts: RunFacts) -> list[StageLossLine]:
    """Returns a line per stage and mode, in order, without modes that have neither weight nor measurement."""
    lines = []
    for number, updates in enumerate(stages(facts.history), 1):
        first, last = (_step(facts.history, update) for update in (updates[0], updates[-1]))
        for mode in (*MODES, ON_POLICY):
            weights = _known(updates, f"weight_{mode}")
            heldout = _known(updates, f"heldout_bits_per_byte_{mode}")
            ce, kl = (_from_to(updates, f"{part}_{mode}_nats") for part in ("ce", "kl"))
            if any(weights) or ce or kl or heldout:
                shown = f"{heldout[-1]:.3f}" if heldout else ""
                lines.append(StageLossLine(number, f"{first:,} to {last:,}", mode, _weight(weights), ce, kl, shown))
        if has_pairs(updates):
            weight, loss = _weight(_known(updates, "weight_preference")), _from_to(updates, "preference_nats")
            correct = _from_to(updates, "preference_accuracy", 100, 0) + " %"
            lines.append(StageLossLine(number, f"{first:,} to {last:,}", "preference", weight, loss, "", "", correct))
    return lines


def has_pairs(history: History) -> bool:
    """Returns whether any update trained pairs of answers."""
    return any("preference_nats" in update for update in history)


def stages(history: History) -> list[list[Mapping[str, float]]]:
    """Groups the updates by stage of the schedule."""
    return [list(updates) for _, updates in groupby(history, lambda update: update.get("stage"))]


def stage_boundaries(history: History) -> list[float]:
    """Returns the first update of every stage but the first."""
    return [after["step"] for before, after in pairwise(history) if after.get("stage") != before.get("stage")]


def losses_alt(facts: RunFacts) -> str:
    """Describes the plot of the losses in words: where every curve begins and ends in every stage."""
    parts = []
    for line in stage_loss_lines(facts):
        values = [f"weight {line.weight}"] if line.weight else []
        values += [f"{'loss' if line.accuracy else 'cross-entropy'} {line.ce}"] if line.ce else []
        values += [f"KL {line.kl}"] if line.kl else []
        values += [f"held out {line.heldout} bits per byte"] if line.heldout else []
        values += [f"pairs in the right order {line.accuracy}"] if line.accuracy else []
        parts.append(f"stage {line.stage}, updates {line.updates}, {line.mode} mode: {', '.join(values)}")
    return f"Curves of the losses in nats per response token over the updates. {'; '.join(parts)}."


def _from_to(updates: History, name: str, scale: float = 1.0, digits: int = 3) -> str:
    known = _known(updates, name)
    if not known:
        return ""
    width = max(1, round(ENDS_SHARE * len(known)))
    first, last = (sum(end) / width for end in (known[:width], known[-width:]))
    return f"{scale * first:.{digits}f} to {scale * last:.{digits}f}"


def _weight(weights: Sequence[float]) -> str:
    if not weights:
        return ""
    ends = list(dict.fromkeys(f"{weight:.3g}" for weight in (weights[0], weights[-1])))
    return " to ".join(ends)


def _known(updates: History, name: str) -> list[float]:
    return [update[name] for update in updates if name in update and math.isfinite(update[name])]


def _step(history: History, update: Mapping[str, float]) -> int:
    return int(update["step"]) if "step" in update else next(i for i, each in enumerate(history) if each is update)
