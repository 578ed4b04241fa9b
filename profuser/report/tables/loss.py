"""What each stage of the schedule did to the losses, as lines of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts

ENDS_SHARE = 0.05
"""A loss at either end of a stage is the mean over this share of the stage's updates, at least one."""
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class StageLossLine:
    """One mode in one stage of the schedule, as text."""

    stage: int
    """From 1."""
    updates: str
    mode: str
    weight: str
    ce: str
    """From its first updates to its last ones, nats per token; empty where the mode has no weight."""
    kl: str
    heldout: str
    """Bits per byte of the rows that training kept apart, as measured last in the stage."""


def stage_loss_lines(facts: RunFacts) -> list[StageLossLine]:
    """Both modes in every stage, in order; a mode without weight and without a measurement is left out."""
    lines = []
    for number, updates in enumerate(stages(facts.history), 1):
        first, last = (_step(facts.history, update) for update in (updates[0], updates[-1]))
        for mode in MODES:
            weights = _known(updates, f"weight_{mode}")
            heldout = _known(updates, f"heldout_bits_per_byte_{mode}")
            ce, kl = (_from_to(updates, f"{part}_{mode}_nats") for part in ("ce", "kl"))
            if any(weights) or ce or kl or heldout:
                shown = f"{heldout[-1]:.3f}" if heldout else ""
                lines.append(StageLossLine(number, f"{first:,} to {last:,}", mode, _weight(weights), ce, kl, shown))
    return lines


def stages(history: History) -> list[list[Mapping[str, float]]]:
    """The updates of every stage of the schedule."""
    return [list(updates) for _, updates in groupby(history, lambda update: update.get("stage"))]


def stage_boundaries(history: History) -> list[float]:
    """The first update of every stage but the first."""
    return [after["step"] for before, after in pairwise(history) if after.get("stage") != before.get("stage")]


def losses_alt(facts: RunFacts) -> str:
    """The picture of the losses in words: where every curve begins and ends in every stage."""
    parts = []
    for line in stage_loss_lines(facts):
        told = [f"weight {line.weight}"] if line.weight else []
        told += [f"cross-entropy {line.ce}"] if line.ce else []
        told += [f"KL {line.kl}"] if line.kl else []
        told += [f"held out {line.heldout} bits per byte"] if line.heldout else []
        parts.append(f"stage {line.stage}, updates {line.updates}, {line.mode} mode: {', '.join(told)}")
    return f"Curves of the losses in nats per response token over the updates. {'; '.join(parts)}."


def _from_to(updates: History, name: str) -> str:
    known = _known(updates, name)
    if not known:
        return ""
    width = max(1, round(ENDS_SHARE * len(known)))
    first, last = (sum(end) / width for end in (known[:width], known[-width:]))
    return f"{first:.3f} to {last:.3f}"


def _weight(weights: Sequence[float]) -> str:
    if not weights:
        return ""
    ends = list(dict.fromkeys(f"{weight:.3g}" for weight in (weights[0], weights[-1])))
    return " to ".join(ends)


def _known(updates: History, name: str) -> list[float]:
    return [update[name] for update in updates if name in update and math.isfinite(update[name])]


def _step(history: History, update: Mapping[str, float]) -> int:
    return int(update["step"]) if "step" in update else next(i for i, each in enumerate(history) if each is update)
