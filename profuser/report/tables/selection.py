"""Shows the choice of teachers in words, as rows for a CSV, and as tables for a terminal of 80 columns or more."""

import math
from dataclasses import asdict
from typing import Any

from rich.table import Table

from profuser.artifacts.schemas import MODES
from profuser.report.facts import ALL, RunFacts
from profuser.report.tables.results import ScoreLine
from profuser.report.tables.table import name_cell, new_table, percent
from profuser.rewards.verdicts import verdict_words
from profuser.selection.summary import SelectionFacts, SourceComparison

LONGER_WINS = (
    "how often the longer of two answers of different length to one prompt has the higher reward; 50 % is no bias"
)
LENGTH_RHO = "Spearman's rank correlation of bytes and reward, over all answers"
KAPPA = "Cohen's kappa; 0 is chance, 1 is always the same choice"


def selection_words(facts: RunFacts) -> list[str]:
    """States how often both modes choose the same teacher, how many rejected answers teach, how many pairs and answers of the
    target there are, and how often the target is chosen."""
    out = []
    modes = facts.selection.modes if facts.selection else None
    if modes and modes.num_rows:
        chance = f" (kappa {signed(modes.kappa)}; 0 is chance, 1 is always)" if math.isfinite(modes.kappa) else ""
        out.append(
            f"Both modes choose the same teacher on {percent(modes.share, 1)} of the {modes.num_rows:,} rows "
            f"that have one in both{chance}."
        )
    out += [
        f"{judge.taught_rejected:,} of the {judge.num_taught:,} answers that teach are rejected by {judge.name}."
        for judge in (facts.selection.judges if facts.selection else ())
        if judge.taught_rejected is not None and judge.num_taught
    ]
    if silent := facts.selection_counts.get("rows_without_accepted_answer"):
        out.append(f"{silent:,.0f} rows teach only the ground truth: every verifier rejects all their answers.")
    counts = facts.selection_counts
    if pairs := counts.get("preference_pairs"):
        none = counts.get("rows_without_pair", 0)
        out.append(f"{pairs:,.0f} pairs of answers; of {none:,.0f} rows with several answers no two make a pair.")
    if own := counts.get("on_policy_examples"):
        out.append(f"{own:,.0f} answers of the target have the distributions of the row's teacher.")
    wins = [f"{percent(part, 1)} of the examples in {mode} mode" for mode, part in facts.target_wins().items()]
    if wins:
        out.append(f"The target itself wins, with little new to learn, in {', '.join(wins)}.")
    return out


def verdict_lines(facts: RunFacts) -> list[str]:
    """States how far the verdicts of each generative judge can be relied on, a line each."""
    found = ((stage.name, verdict_words(stage.counts, stage.metrics)) for stage in facts.stages)
    return [f"{name}: {words}." for name, words in found if words]


def taught_lines(facts: RunFacts, mode: str) -> list[ScoreLine]:
    """Returns a line per category: the share of a mode's examples that each source teaches; none without categories."""
    wins = {row.source: getattr(row, mode) for row in facts.wins()}
    every = {ALL: wins} if facts.taught else {}
    every |= {name: {source: own.get((mode, source), 0) for source in wins} for name, own in facts.taught.items()}
    lines = []
    for category, own in every.items():
        total = sum(own.values())
        lines.append(ScoreLine(category, total, {source: percent(num, total) for source, num in own.items()}, {}))
    return lines


def win_rate_lines(facts: RunFacts, mode: str) -> list[ScoreLine]:
    """Returns a line per category: how often the first source of each pair beats the second in a mode; none without categories."""
    lines = []
    for name, found in (_every(facts) if facts.selection_by_category else {}).items():
        rates = {duel_name(facts, duel): getattr(duel, mode) for duel in found.duels}
        num_rows = max((rate.num_rows for rate in rates.values()), default=0)
        lines.append(ScoreLine(name, num_rows, {pair: share(rate.share) for pair, rate in rates.items()}, {}))
    return lines


def agreement_lines(facts: RunFacts) -> list[ScoreLine]:
    """Returns a line per category: how often each pair of rewards chooses the same answer; none without categories."""
    lines = []
    for name, found in (_every(facts) if facts.selection_by_category else {}).items():
        cells = {f"{pair.first}, {pair.second}": share(pair.share) for pair in found.agreements}
        kappas = {f"{pair.first}, {pair.second}": f"kappa {signed(pair.kappa)}" for pair in found.agreements}
        lines.append(ScoreLine(name, max((pair.num_rows for pair in found.agreements), default=0), cells, kappas))
    return lines


def judge_lines(facts: RunFacts) -> list[ScoreLine]:
    """Returns a line per category: how often the longer answer has each reward's higher score, and its abstentions below."""
    lines = []
    for name, found in (_every(facts) if facts.selection_by_category else {}).items():
        longer = {judge.name: share(judge.longer_wins) for judge in found.judges}
        abstains = {judge.name: f"abstains {percent(judge.abstained, judge.num_rows)}" for judge in found.judges}
        lines.append(ScoreLine(name, max((judge.num_rows for judge in found.judges), default=0), longer, abstains))
    return lines


def aligned_lines(facts: RunFacts) -> list[ScoreLine]:
    """Returns a line per category: the share of its response tokens by alignment rule; none without categories."""
    every = {ALL: facts.coverage()} | dict(facts.aligned) if facts.aligned else {}
    lines = []
    for name, rules in every.items():
        total = sum(rules.values())
        lines.append(ScoreLine(name, total, {rule: percent(num, total) for rule, num in rules.items()}, {}))
    return lines


def duel_name(facts: RunFacts, duel: SourceComparison) -> str:
    """Returns the name of a comparison of two sources."""
    return f"{facts.source_label(duel.first)} beats {facts.source_label(duel.second)}"


def win_rate_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns a row per category, pair of sources and mode."""
    return [
        {"category": category, "first": duel.first, "second": duel.second, "mode": mode}
        | asdict(rate)
        | {"win_rate": rate.share}
        for category, found in _every(facts).items()
        for duel in found.duels
        for mode, rate in ((mode, getattr(duel, mode)) for mode in MODES)
    ]


def agreement_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns, for all rows and each category, the agreement of both modes, then of every pair of rewards."""
    return [
        {"category": category} | asdict(agreement)
        for category, found in _every(facts).items()
        for agreement in (found.modes, *found.agreements)
    ]


def _every(facts: RunFacts) -> dict[str, SelectionFacts]:
    """Returns the facts of all rows, then of each category; empty if nothing was selected."""
    return {ALL: facts.selection, **facts.selection_by_category} if facts.selection else {}


def length_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns a row per length bin and reward."""
    return [
        {
            "reward": name,
            "num_answers": part.num_answers,
            "mean_bytes": part.mean_bytes,
            "mean_standardised_reward": mean,
        }
        for part in (facts.selection.lengths if facts.selection else ())
        for name, mean in part.rewards.items()
    ]


def win_rates_table(facts: RunFacts) -> Table:
    """Returns the share of rows on which the first source of each pair is better, in both modes."""
    table = new_table("who beats whom on the same row, ties count half", "source beats")
    table.add_column("source", no_wrap=True)
    for mode in MODES:
        table.add_column(f"{mode} mode", justify="right")
        table.add_column("rows", justify="right")
    for duel in facts.selection.duels if facts.selection else ():
        rates = [getattr(duel, mode) for mode in MODES]
        cells = [cell for rate in rates for cell in (share(rate.share), f"{rate.num_rows:,}")]
        table.add_row(name_cell(facts.source_label(duel.first)), name_cell(facts.source_label(duel.second)), *cells)
    return table


def judges_table(facts: RunFacts) -> Table:
    """Returns the weight, abstentions and length bias of each reward."""
    judges = facts.selection.judges if facts.selection else ()
    table = new_table(f"judges of the {judges[0].num_rows if judges else 0:,} rows with different answers", "reward")
    table.caption = f"longer wins: {LONGER_WINS}\nlength rho: {LENGTH_RHO}"
    for name in ("weight", "abstains", "longer wins", "length rho"):
        table.add_column(name, justify="right")
    for judge in judges:
        abstains, correlation = percent(judge.abstained, judge.num_rows), signed(judge.length_correlation)
        table.add_row(name_cell(judge.name), f"{judge.weight:g}", abstains, share(judge.longer_wins), correlation)
    return table


def agreement_table(facts: RunFacts) -> Table:
    """Returns how often each pair of rewards chooses the same answer, and Cohen's kappa."""
    table = new_table("agreement of the judges, where both voted", "reward")
    table.caption = f"kappa: {KAPPA}"
    table.add_column("reward", no_wrap=True)
    for name in ("rows", "same choice", "kappa"):
        table.add_column(name, justify="right")
    for pair in facts.selection.agreements if facts.selection else ():
        numbers = (f"{pair.num_rows:,}", share(pair.share), signed(pair.kappa))
        table.add_row(name_cell(pair.first), name_cell(pair.second), *numbers)
    return table


def share(value: float) -> str:
    """Formats a share as `12.3 %`; a dash if it is not finite."""
    return percent(value, 1) if math.isfinite(value) else "-"


def signed(value: float) -> str:
    """Formats a correlation or kappa with its sign; a dash if it is not finite."""
    return f"{round(value, 2) + 0.0:+.2f}" if math.isfinite(value) else "-"
