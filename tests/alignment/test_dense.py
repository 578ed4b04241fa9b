"""Compares transport, with the whole vocabulary as top-k, with the source's exact distribution of the next target token.

A tiny source is a table: a distribution for every history of tokens. From it the exact distribution of the target's next token,
given the target tokens before it, is computed by enumerating the source's continuations. Where a rule is exact, transport must
agree; elsewhere the difference in total variation is bounded by the mass of the continuations whose next target token is not
determined by the first source token, or by the one after a used-up candidate if it was requested from the source.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profuser.alignment.next_steps import MIN_SHARE, find_used_up
from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.transport import transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule
from tests.alignment.oracle import Vocabulary
from tests.alignment.test_transport_oracle import table_of

END = 0
ROUNDING = 1e-6
"""Masses are summed in float32."""


@dataclass(frozen=True)
class Source:
    """A language model over a vocabulary: an arbitrary but reproducible distribution for each history."""

    vocabulary: Vocabulary
    seed: int

    def distribution(self, history: tuple[int, ...]) -> np.ndarray:
        generator = np.random.default_rng([self.seed, len(history), *history])
        return generator.dirichlet(np.full(len(self.vocabulary.table), 0.7))


def piece(vocabulary: Vocabulary, index: int) -> bytes:
    return vocabulary.table[index] or b""


@dataclass(frozen=True)
class Place:
    """A target position, with the source's history before the source token there and the tokens emitted by the target."""

    source: Source
    target: Vocabulary
    history: tuple[int, ...]
    """Source tokens before the one that starts here or contains the position."""
    before: bytes
    consumed: bytes
    emitted: tuple[int, ...]
    """Target tokens of `before + consumed`."""
    realised: int
    steps: frozenset[int] = frozenset()
    """Used-up candidates whose next step is known."""

    def next_target(self, text: bytes, ended: bool) -> int | None:
        """Returns the target's next token if the source continues with `text`; None if the target had then emitted others."""
        ids = greedy(self.target, self.before + text)
        if tuple(ids[: len(self.emitted)]) != self.emitted:
            return None
        goal = ids[len(self.emitted)]
        assert ended or goal != END
        return goal

    def open(self, path: tuple[int, ...]) -> bool:
        """Returns whether the source tokens known to transport leave the target's next token undetermined."""
        known = path[: 2 if path[0] in self.steps else 1]
        data = b"".join(piece(self.source.vocabulary, index) for index in known)
        used = len(self.consumed)
        if known[-1] == END:
            return False
        if len(data) <= used or self.extended(data[used:]):
            return True
        begin = 0
        for index in self.emitted:
            if self.extended((self.before + data)[begin:]):
                return True
            begin += len(piece(self.target, index))
        return self.kept(known[0], data) != (self.next_target(data, ended=True) is not None)

    def kept(self, first: int, data: bytes) -> bool:
        """Returns whether transport assumes that the target splits these bytes after the consumed ones."""
        used, realised = len(self.consumed), piece(self.source.vocabulary, self.realised)
        judged = len(piece(self.source.vocabulary, first)) == used or self.target.splits(realised, used)
        return not (used and judged) or self.target.splits(data, used)

    def extended(self, data: bytes) -> bool:
        """Returns whether a longer target token begins with all these bytes."""
        return any(other and len(other) > len(data) and other.startswith(data) for other in self.target.table)

    def exact(self, conditioned: bool = True) -> tuple[dict[int, float], float]:
        """Returns the distribution of the target's next token, and a bound on the error due to open continuations.

        With `conditioned`, continuations that the target would have split differently before this position are left out.
        """
        longest = max(len(data) for data in self.target.table if data)
        found: dict[int, float] = {}
        masses = {True: 0.0, False: 0.0}  # of open continuations, and of determined ones without contradiction

        def walk(path: tuple[int, ...], text: bytes, mass: float) -> None:
            ended = path[-1:] == (END,)
            if ended or (path and len(text) >= len(self.consumed) + longest):
                goal = self.next_target(text, ended)
                if not conditioned:
                    goal = greedy(self.target, text[len(self.consumed) :])[0]
                if goal is not None:
                    found[goal] = found.get(goal, 0.0) + mass
                if self.open(path) or goal is not None:
                    masses[self.open(path)] += mass
                return
            for index, probability in enumerate(self.source.distribution((*self.history, *path))):
                longer = text + piece(self.source.vocabulary, index)
                agrees = longer.startswith(self.consumed) or self.consumed.startswith(longer)
                if agrees and not (index == END and len(text) < len(self.consumed)):
                    walk((*path, index), longer, mass * probability)

        walk((), b"", 1.0)
        total = sum(found.values())
        return {index: mass / total for index, mass in found.items()}, masses[True] / sum(masses.values())


def greedy(vocabulary: Vocabulary, text: bytes) -> list[int]:
    ids = []
    while text:
        index = vocabulary.first(text)
        assert index is not None
        ids.append(index)
        text = text[len(piece(vocabulary, index)) :]
    return [*ids, END]


def positions(source: Source, target: Vocabulary, response: bytes, condition: str = "tail"):
    """Yields for each target position its rule, the transported masses, its place and the realised target token."""
    source_ids, target_ids = greedy(source.vocabulary, response), greedy(target, response)
    topk, full = whole_distributions(source, [tuple(source_ids[:s]) for s in range(len(source_ids))])
    tables = table_of(source.vocabulary), table_of(target)
    projection = VocabProjection.build(*tables)
    own = np.log(full[np.arange(len(source_ids)), source_ids])
    signals = SourceSignals(Ragged.from_rows([source_ids]), own, topk)
    goals = Ragged.from_rows([target_ids])
    if condition == "exact":
        where, candidates = find_used_up(signals, goals, [response], *tables, AlignmentRules())
        histories = [(*source_ids[:s], c) for s, c in zip(where.tolist(), candidates.tolist(), strict=True)]
        steps = NextSteps(where, candidates, whole_distributions(source, histories)[0])
        signals = replace(signals, steps=steps)
    out = transport_rows(signals, goals, [response], projection, top_k=len(target.table)).row(0)
    starts = np.cumsum([0, *(len(piece(source.vocabulary, index)) for index in source_ids)])
    here = 0
    for t, index in enumerate(target_ids):
        s = len(source_ids) - 1 if index == END else int(np.searchsorted(starts, here, side="right")) - 1
        before, consumed = response[: starts[s]], response[starts[s] : here] if index != END else b""
        asked = signals.steps.candidates[signals.steps.positions == s].tolist() if signals.steps else []
        known = frozenset(index for index in asked if piece(source.vocabulary, index) == consumed)
        masses = {
            int(i): float(np.exp(value))
            for i, value in zip(out.topk.ids[t], out.topk.logprobs[t], strict=True)
            if np.isfinite(value)
        }
        history, emitted = tuple(source_ids[:s]), tuple(target_ids[:t])
        place = Place(source, target, history, before, consumed, emitted, source_ids[s], known)
        yield Rule(out.rules[t]), masses, place, index
        here += len(piece(target, index))


def whole_distributions(source: Source, histories: list[tuple[int, ...]]) -> tuple[TopK, np.ndarray]:
    """Returns distributions after histories, over the whole vocabulary: as top-k, and by token."""
    full = np.array([source.distribution(history) for history in histories])
    full = full.reshape(len(histories), len(source.vocabulary.table))
    order = np.argsort(-full, axis=1)
    return TopK(order.astype(np.int32), np.log(np.take_along_axis(full, order, axis=1))), full


def total_variation(masses: dict[int, float], wanted: dict[int, float]) -> float:
    """Returns half the sum of absolute differences, with the tail compared to zero."""
    tail = 1 - sum(masses.values())
    assert tail >= -ROUNDING
    return (sum(abs(masses.get(i, 0.0) - wanted.get(i, 0.0)) for i in masses | wanted) + tail) / 2


@cache
def alphabet(letters: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([letter]) for letter in letters)


def vocabulary(*longer: bytes, letters: bytes = b"ab") -> Vocabulary:
    return Vocabulary([None, *alphabet(letters), *longer], end=END)


PIECES = st.lists(st.text("ab", min_size=2, max_size=3).map(str.encode), max_size=3, unique=True)


@pytest.mark.parametrize("condition", ["tail", "exact"])
@settings(max_examples=60)
@given(ours=PIECES, theirs=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_the_mass_of_open_continuations_bounds_the_error(condition, ours, theirs, response, seed):
    source, target = Source(vocabulary(*ours), seed), vocabulary(*theirs)
    for rule, masses, place, _ in positions(source, target, response, condition):
        if rule == Rule.NONE:
            continue
        wanted, left_open = place.exact()
        assert total_variation(masses, wanted) <= left_open + ROUNDING, rule


PAIRS = st.lists(st.sampled_from([b"aa", b"ab", b"ba", b"bb"]), max_size=4, unique=True)


@settings(max_examples=60)
@given(longer=PAIRS, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_next_steps_make_transport_exact_where_consumed_bytes_have_one_spelling(longer, response, seed):
    """At most one byte is consumed, and a target of single bytes never looks beyond a source token."""
    for _, masses, place, _ in positions(Source(vocabulary(*longer), seed), vocabulary(), response, "exact"):
        assert total_variation(masses, place.exact()[0]) <= MIN_SHARE + ROUNDING


def test_next_steps_reduce_the_error_of_condition_where_it_is_not_exact():
    distances: dict[str, list[float]] = {"tail": [], "exact": []}
    for condition, found in distances.items():
        for seed in range(40):
            source, target = Source(vocabulary(b"ab", b"bb", b"aba"), seed), vocabulary(b"ba")
            for rule, masses, place, _ in positions(source, target, b"abbabaab", condition):
                if rule == Rule.CONDITION:
                    found.append(total_variation(masses, place.exact()[0]))
    assert np.mean(distances["exact"]) < 0.5 * np.mean(distances["tail"])


@settings(max_examples=60)
@given(longer=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_transport_is_exact_where_the_source_token_determines_the_next_target_token(longer, response, seed):
    """A target of single bytes never looks beyond a source token, and no source token is a prefix of another: exact throughout."""
    pieces = [*longer, *(letter for letter in alphabet(b"ab") if not any(data.startswith(letter) for data in longer))]
    assume(not any(a != b and b.startswith(a) for a in pieces for b in pieces))
    source = Source(Vocabulary([None, *pieces], end=END), seed)
    try:
        greedy(source.vocabulary, response)
    except AssertionError:
        assume(False)
    for rule, masses, place, _ in positions(source, vocabulary(), response):
        wanted, left_open = place.exact()
        assert rule in (Rule.PROJECT, Rule.CONDITION, Rule.END)
        assert left_open == pytest.approx(0.0, abs=1e-12)
        assert masses == pytest.approx(wanted, abs=ROUNDING)


@settings(max_examples=60)
@given(longer=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_a_chain_is_exact_for_a_realised_token_with_one_spelling_by_the_source(longer, response, seed):
    """A source of single bytes: the product along them is the probability of the target's token, if no longer one extends it."""
    target = vocabulary(*longer)
    for rule, masses, place, realised in positions(Source(vocabulary(), seed), target, response):
        token = piece(target, realised)
        extended = any(data and data != token and data.startswith(token) for data in target.table)
        if rule == Rule.CHAIN and not extended:
            wanted, _ = place.exact(conditioned=False)
            assert masses[realised] == pytest.approx(wanted[realised], rel=ROUNDING)
