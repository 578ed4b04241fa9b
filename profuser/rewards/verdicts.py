"""Reads verdicts from the replies of a generative judge, and turns them into scores.

A verdict is one token of the reply: a grade, or the letter of the better response. Its probabilities are those of the candidates at
the first token that is a verdict and a word by itself; if the judge wrote none, those at its first token. Candidates that spell one
verdict (`4`, ` 4`) are added up.

Legend: G possible verdicts (grades, worst first; or A and B).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from profuser.artifacts.schemas import with_verdicts
from profuser.corpus.turns import Message
from profuser.engines.base import Usage

AROUND = " \t\r\n\u2581*_\"'`.,:;()[]{}<>#"
"""Characters around a verdict that belong to its layout."""
NONE = "without_verdict"
"""Reason of a reply in which no verdict is in sight."""


class Token(NamedTuple):
    """A token of a reply."""

    text: str
    candidates: Mapping[str, float]
    """Natural log-probabilities of its candidates by text; empty if the server gives none."""

    @classmethod
    def of(cls, text: str, candidates: Iterable[tuple[str, float]]) -> "Token":
        """Returns a token with the candidates of one text added up: servers write `4` for two tokens, with and without a space."""
        found: dict[str, float] = {}
        for name, value in candidates:
            found[name] = float(np.logaddexp(found.get(name, -math.inf), value))
        return cls(text, found)


@dataclass(frozen=True)
class Reply:
    """A judge's reply to one prompt."""

    text: str
    """Everything that it wrote, its thinking included."""
    tokens: Sequence[Token] = ()
    """Tokens behind its thinking; of a server without log-probabilities, the words."""
    refusal: str | None = None
    """Why there is no reply that can be read."""
    reason: str = NONE
    """The refusal's kind, a few words joined by underscores."""
    usage: Usage | None = None
    """Tokens as a server counted them."""


@dataclass(frozen=True)
class VerdictRow:
    """One question to a judge with its reply, as it is stored."""

    first: int
    """Index of the answer that is judged, or shown first, among the answers of the call."""
    second: int | None
    """Index of the answer that is shown second; None in pointwise mode."""
    messages: tuple[Message, ...]
    reply: Reply
    masses: Float[np.ndarray, "G"]
    """Probability of each possible verdict."""
    score: float
    """Expected grade, or probability that the first is preferred; NaN without a verdict."""

    def moved(self, places: Sequence[int]) -> "VerdictRow":
        """Returns it for a call in which the answers are at these places."""
        return replace(self, first=places[self.first], second=None if self.second is None else places[self.second])

    @property
    def is_measured(self) -> bool:
        """Whether the probabilities are known, not only the text."""
        return any(token.candidates for token in self.reply.tokens)


def add_verdicts(table: pa.Table, verdicts: Sequence[VerdictRow], owners: Sequence[tuple[int, int]]) -> pa.Table:
    """Returns a table of scores with the verdicts of each row, see `with_verdicts`.

    Args:
        table: scores.
        verdicts: those of the call that made them.
        owners: of each answer of the call, its row's place in the table, and its own among the row's answers.
    """
    out: list[list[dict[str, Any]]] = [[] for _ in range(len(table))]
    for each in verdicts:
        row, first = owners[each.first]
        record = {"first": first, "second": None if each.second is None else owners[each.second][1]}
        record |= {"messages": [message._asdict() for message in each.messages], "reply": each.reply.text}
        record |= {"masses": each.masses.tolist(), "score": None if math.isnan(each.score) else each.score}
        reason = each.reply.refusal or each.reply.reason.replace("_", " ")
        out[row].append(record | {"refused": reason if math.isnan(each.score) else None})
    field = with_verdicts(pa.schema([])).field("verdicts")
    return table.append_column(field, pa.array(out, field.type))


def verdict_masses(reply: Reply, verdicts: Sequence[str]) -> Float[np.ndarray, "G"]:
    """Returns the probability of each possible verdict; zeros if none is in sight.

    Without log-probabilities the verdict that is written first has all of it.
    """
    out = np.zeros(len(verdicts))
    place = {verdict: index for index, verdict in enumerate(verdicts)}
    tokens = reply.tokens
    spelt = [index for index, token in enumerate(tokens) if _bare(token.text) in place]
    written = next((index for index in spelt if _stands_alone(tokens, index)), None)
    if written is not None and not tokens[written].candidates:
        out[place[_bare(tokens[written].text)]] = 1.0
        return out
    first = next((index for index, token in enumerate(tokens) if _bare(token.text)), None)
    if written is None and first not in spelt:
        written = first
    for text, value in tokens[written].candidates.items() if written is not None else ():
        if (index := place.get(_bare(text))) is not None:
            out[index] += math.exp(value)
    return out


def _stands_alone(tokens: Sequence[Token], index: int) -> bool:
    """Returns whether a token is a word by itself: neither the `1` of 10 nor the `A` of a longer word."""
    before, after = (tokens[index - 1].text if index else "", tokens[index + 1].text if index + 1 < len(tokens) else "")
    text = tokens[index].text
    return not ((before[-1:].isalnum() and text[:1].isalnum()) or (text[-1:].isalnum() and after[:1].isalnum()))


def _bare(text: str) -> str:
    return text.strip(AROUND)


def expected(masses: Float[np.ndarray, "G"], values: Sequence[float]) -> float:
    """Returns the expected value under probabilities that are made to sum to 1; NaN if all are 0."""
    total = float(masses.sum())
    return float(masses @ np.asarray(values, dtype=np.float64)) / total if total else math.nan


class PairOutcome(NamedTuple):
    """Comparison of two answers in both orders."""

    preference: float
    """Probability that the one is preferred to the other, 0.5 for a tie; NaN unless both orders have a verdict."""
    is_tie: bool
    orders_disagree: bool
    """Whether each order prefers the answer in the same place, by more than the margin."""


def pair_outcome(shown_first: float, shown_second: float, margin: float) -> PairOutcome:
    """Combines the verdicts on a pair.

    Args:
        shown_first: probability that the one is preferred, where it is shown first.
        shown_second: the same where it is shown second.
        margin: see `LlmJudgeConfig.tie_margin`.
    """
    leads = np.array([shown_first, shown_second]) - 0.5
    if np.isnan(leads).any():
        return PairOutcome(math.nan, False, False)
    disagree = bool(np.abs(leads).min() > margin and leads[0] * leads[1] < 0)
    lead = float(leads.mean())
    is_tie = disagree or abs(lead) <= margin + 1e-12
    return PairOutcome(0.5 if is_tie else 0.5 + lead, is_tie, disagree)


@dataclass
class VerdictCounts:
    """Counts of a judge's verdicts, for a shard's metadata."""

    rows: Sequence[VerdictRow]
    outcomes: Sequence[PairOutcome] = field(default_factory=tuple)
    """One per pair; none in pointwise mode."""

    @property
    def counts(self) -> dict[str, float]:
        """The counts by name. Those with a slash are sums from which `verdict_metrics` takes means."""
        found = [row for row in self.rows if not math.isnan(row.score)]
        measured = [row for row in found if row.is_measured]
        out: dict[str, float] = {"verdicts": len(found)}
        for row in self.rows:
            if math.isnan(row.score):
                out[row.reply.reason] = out.get(row.reply.reason, 0) + 1
        out |= {"verdicts/measured": len(measured), "verdicts/mass": sum(float(row.masses.sum()) for row in measured)}
        if any(row.second is not None for row in self.rows):
            known = [each for each in self.outcomes if not math.isnan(each.preference)]
            out |= {"pairs_compared": len(known), "ties": sum(each.is_tie for each in known)}
            out["orders_disagree"] = sum(each.orders_disagree for each in known)
            # Of whole pairs alone: each answer is once in either place.
            out["pairs/first"] = sum(row.score for row in self._of_whole_pairs())
        return out | sum((row.reply.usage for row in self.rows if row.reply.usage), Usage()).counts

    def _of_whole_pairs(self) -> list[VerdictRow]:
        found = {(row.first, row.second): row for row in self.rows if not math.isnan(row.score)}
        return [row for (first, second), row in found.items() if (second, first) in found]


def verdict_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics of a stage from the sums of its shards' counts; none if no verdict was read.

    `mass_on_verdicts`: mean probability that a reply's token is one of the possible verdicts, 0 to 1.
    `first_preferred`: mean probability with which the answer that is shown first is preferred; 0.5 is no position bias.
    """
    out: dict[str, float] = {}
    if measured := counts.get("verdicts/measured"):
        out["mass_on_verdicts"] = counts["verdicts/mass"] / measured
    if pairs := counts.get("pairs_compared"):
        out["first_preferred"] = counts["pairs/first"] / (2 * pairs)
    return out


def verdict_words(counts: Mapping[str, float], metrics: Mapping[str, float]) -> str:
    """Returns a phrase on how far a judge's verdicts can be relied on; empty if none were asked for."""
    if "verdicts" not in counts:
        return ""
    parts = [f"{counts['verdicts']:,.0f} verdicts"]
    if "mass_on_verdicts" in metrics:
        parts.append(f"{100 * metrics['mass_on_verdicts']:.1f} % of the probability is on possible verdicts")
    elif counts["verdicts"]:
        parts.append("read from their texts, without probabilities")
    if pairs := counts.get("pairs_compared"):
        disagree, first = counts["orders_disagree"], 100 * metrics["first_preferred"]
        parts.append(
            f"{counts['ties']:,.0f} of {pairs:,.0f} pairs are ties, {disagree:,.0f} of them because the orders disagree"
        )
        parts.append(f"the answer shown first is preferred with {first:.1f} % (50 % is no position bias)")
    return "; ".join(parts)
