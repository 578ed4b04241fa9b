"""Total variation of CONDITION from the exact distribution, found by walking through a trigram source's continuations."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from profuser.alignment.matching import match
from profuser.alignment.next_steps import find_used_up
from profuser.alignment.source_signals import NextSteps, SourceSignals, share_prefix
from profuser.alignment.spans import byte_spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import TransportedRows, transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule
from tests.benchmarks.measure import Row
from tests.benchmarks.signals import K, Side, responses
from tests.real_tokenizers import sentencepiece, tekken

NUM_ROWS = 60
LEAST_MASS = 5e-4
"""Smallest probability of a continuation that is walked, relative to all that begin with the consumed bytes."""
LOOKAHEAD = 2
"""Source tokens beyond the consumed bytes after which the target's next token counts as settled."""


class Trigrams:
    """A source: frequencies of trigrams, bigrams and tokens, interpolated (Witten-Bell), and squared to be as peaked as a model."""

    def __init__(self, tokens: TokenBytes, rows: Ragged) -> None:
        self.end, self.size = tokens.end_ids[0], tokens.vocab_size
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for row in range(len(rows)):
            ids = [self.end, self.end, *rows.row(row).tolist(), self.end]
            for place in range(2, len(ids)):
                for order in range(3):
                    self.counts[tuple(ids[place - order : place])][ids[place]] += 1

    def distribution(self, history: list[int]) -> np.ndarray:
        """Returns the probabilities of the next token over the whole vocabulary."""
        ids, left, out = [self.end, self.end, *history], 1.0, np.zeros(self.size)
        for order in (2, 1, 0):
            found = self.counts.get(tuple(ids[len(ids) - order :]))
            if found:
                total = sum(found.values())
                weight = left * (total / (total + len(found)) if order else 1.0)
                out[list(found)] += weight * np.array(list(found.values())) / total
                left -= weight
        return out**2 / (out**2).sum()

    def top(self, histories: list[list[int]]) -> TopK:
        """Returns the K most probable tokens after each history."""
        ids, logprobs = np.zeros((len(histories), K), np.int32), np.zeros((len(histories), K))
        for place, history in enumerate(histories):
            full = self.distribution(history)
            best = np.argpartition(-full, K)[:K]
            ids[place] = best[np.argsort(-full[best])]
            logprobs[place] = np.log(full[ids[place]])
        return TopK(ids, logprobs)


@dataclass(frozen=True, eq=False)
class Walker:
    """Finds exact distributions of the target's next token, given its tokens so far, inside a source token."""

    model: Trigrams
    source: Side
    target: Side

    def exact(self, history: list[int], consumed: bytes, emitted: list[int]) -> dict[int, float]:
        """Walks on after source tokens and the first bytes of the next; `emitted` are the target's tokens of all these bytes."""
        before, found = self.source.tokens.spell(np.array(history, dtype=int)), defaultdict[int, float](float)
        first = self.model.distribution(history)
        least = LEAST_MASS * first[self.fitting(consumed)].sum()

        def walk(path: list[int], text: bytes, mass: float, beyond: int) -> None:
            if beyond == LOOKAHEAD or path[-1:] == [self.model.end]:
                goal = self.next_target(before + text, emitted)
                if goal is not None:
                    found[goal] += mass
                return
            after = mass * (self.model.distribution([*history, *path]) if path else first)
            agrees = self.fitting(consumed[len(text) :]) if len(text) < len(consumed) else True
            for index in np.flatnonzero((after >= least) & agrees).tolist():
                longer = text + (self.source.tokens[index] or b"")
                walk([*path, index], longer, float(after[index]), beyond + (len(longer) > len(consumed)))

        walk([], b"", 1.0, 0)
        total = sum(found.values())
        return {goal: mass / total for goal, mass in found.items()}

    def fitting(self, left: bytes) -> np.ndarray:
        """Returns the source tokens that agree with bytes: they begin with them, or with a part of them."""
        return _fitting(self.source.tokens, left)

    def next_target(self, text: bytes, emitted: list[int]) -> int | None:
        """Returns the target's token after the emitted ones; None where it would have emitted others, or bytes are cut."""
        try:
            ids = self.target.tokenizer.encode(text.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            return None
        ids = [*ids, self.target.tokens.end_ids[0]]
        return ids[len(emitted)] if ids[: len(emitted)] == emitted else None


@cache
def _fitting(tokens: TokenBytes, left: bytes) -> np.ndarray:
    pieces = (tokens[index] or b"" for index in range(tokens.vocab_size))
    return np.array([bool(piece) and (piece.startswith(left) or left.startswith(piece)) for piece in pieces])


def total_variation(carried: TransportedRows, place: int, wanted: dict[int, float]) -> float:
    """Returns half the sum of absolute differences; the tail is compared with zero."""
    topk = carried.topk.topk
    got = dict(zip(topk.ids[place].tolist(), np.exp(topk.logprobs[place]).tolist(), strict=True))
    tail = max(0.0, 1 - sum(got.values()))
    return (sum(abs(got.get(goal, 0.0) - wanted.get(goal, 0.0)) for goal in got | wanted) + tail) / 2


def run() -> list[Row]:
    source = Side(tekken(50_000), TokenBytes.from_tokenizer(tekken(50_000), 50_000))
    target = Side(sentencepiece(), TokenBytes.from_tokenizer(sentencepiece(), 32_000))
    texts = responses()
    held = [text for text in texts if 60 < len(text) < 500 and "\n" in text][:NUM_ROWS]
    model = Trigrams(source.tokens, source.encode([text for text in texts if text not in held]))
    ids, goals, raw = source.encode(held), target.encode(held), [text.encode() for text in held]
    histories = [ids.row(row)[:place].tolist() for row in range(len(ids)) for place in range(len(ids.row(row)))]
    own = np.log(
        [model.distribution(h)[index] + 1e-30 for h, index in zip(histories, ids.values.tolist(), strict=True)]
    )
    signals = SourceSignals(ids, own, model.top(histories))
    tables = source.tokens, target.tokens
    used_up = find_used_up(signals, goals, raw, *tables, AlignmentRules())
    asked = [[*histories[place], index] for place, index in zip(*(part.tolist() for part in used_up), strict=True)]
    steps = NextSteps(*used_up, model.top(asked))
    projection = VocabProjection.build(*tables)
    ways = [transport_rows(replace(signals, steps=some), goals, raw, projection) for some in (None, steps)]

    matches = match(
        tables[0], ids, byte_spans(tables[0], ids, raw), tables[1], goals, byte_spans(tables[1], goals, raw)
    )
    places = np.flatnonzero(matches.rules == Rule.CONDITION)
    positions, consumed = matches.source[places], matches.consumed[places]
    listed = share_prefix(tables[0], signals.topk.ids[positions], ids.values[positions], consumed).any(axis=1)
    followed = (steps.find(positions, _same_bytes(tables[0], ids.values[positions], consumed)) >= 0) & listed
    walker, distances = Walker(model, source, target), np.full((2, len(places)), np.nan)
    for n in np.flatnonzero(listed).tolist():
        row, position = goals.row_of[places[n]], positions[n]
        emitted = goals.values[goals.offsets[row] : places[n]].tolist()
        data = source.tokens[int(ids.values[position])] or b""
        wanted = walker.exact(histories[position], data[: consumed[n]], emitted)
        if wanted:
            distances[:, n] = [total_variation(way, int(places[n]), wanted) for way in ways]
    out = []
    for name, some in (("where a candidate is used up", followed), ("wherever a listed candidate fits", listed)):
        tail, exact = np.nanmean(distances[:, some], axis=1)
        title = f"CONDITION {name} ({some.sum()} of {len(places)} positions), total variation, exact against tail"
        out.append(Row(title, float(exact), "", float(tail), "<= 0.10"))
    return out


def _same_bytes(tokens: TokenBytes, actual: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """Returns the token that spells the consumed bytes of each realised one; -1 where there is none."""
    pairs = zip(actual.tolist(), consumed.tolist(), strict=True)
    return np.array([tokens.id_of.get((tokens[index] or b"")[:num], -1) for index, num in pairs])
