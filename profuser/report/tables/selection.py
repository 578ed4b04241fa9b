"""Shows the choice of teachers in words, as rows for a CSV, and as tables for a terminal of 80 columns or more."""

import math
from dataclasses import asdict
from typing import Any

from rich.table import Table

from profuser.artifacts.schemas import MODES
from profuser.report.facts import RunFacts
from profuser.report.tables.table import name_cell, new_table, percent

LONGER_WINS = (
    "how often the longer of two answers of different length to one prompt has the higher reward; 50 % is no bias"
)
LENGTH_RHO = "Spearman's rank correlation of bytes and reward, over all answers"
KAPPA = "Cohen's kappa; 0 is chance, 1 is always the same choice"


def selection_words(facts: RunFacts) -> list[str]:
    """States how often both modes choose the same teacher, how many rejected answers teach, and how often the target is chosen."""
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
    wins = [f"{percent(part, 1)} of the examples in {mode} mode" for mode, part in facts.target_wins().items()]
    if wins:
        out.append(f"The target itself wins, with little new to learn, in {', '.join(wins)}.")
    return out


def win_rate_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns a row per pair of sources and mode."""
    return [
        {"first": duel.first, "second": duel.second, "mode": mode, **asdict(rate), "win_rate": rate.share}
        for duel in (facts.selection.duels if facts.selection else ())
        for mode, rate in ((mode, getattr(duel, mode)) for mode in MODES)
    ]


def agreement_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns the agreement of both modes, then of every pair of rewards."""
    found = facts.selection
    return [asdict(agreement) for agreement in (found.modes, *found.agreements)] if found else []


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
