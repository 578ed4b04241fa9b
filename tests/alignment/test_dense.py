"""With the whole vocabulary as top-k, transport against the source's exact distribution of the next target token.

A tiny source is a table: a distribution for every history of tokens. From it the exact distribution of the target's next token is
found by walking through all that the source could go on with. Where a rule is exact, transport must agree; elsewhere the difference
in total variation is bounded by the mass of the continuations whose next target token the first source token does not settle.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profuser.alignment.matching import Rule
from profuser.alignment.transport import transport
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.codec import TopK
from tests.alignment.oracle import Vocabulary
from tests.alignment.test_transport_oracle import table_of

END = 0
ROUNDING = 1e-6
"""Masses are summed in float32."""


@dataclass(frozen=True)
class Source:
    """A language model over a vocabulary: any distribution for any history, the same each time it is asked."""

    vocabulary: Vocabulary
    seed: int

    def distribution(self, history: tuple[int, ...]) -> np.ndarray:
        generator = np.random.default_rng([self.seed, len(history), *history])
        return generator.dirichlet(np.full(len(self.vocabulary.table), 0.7))


def piece(vocabulary: Vocabulary, index: int) -> bytes:
    return vocabulary.table[index] or b""


def exact(
    source: Source, target: Vocabulary, history: tuple[int, ...], consumed: bytes
) -> tuple[dict[int, float], float]:
    """The distribution of the target's next token after `consumed`, and the share that the first source token leaves open."""
    longest = max(len(data) for data in target.table if data)
    found: dict[int, float] = {}
    open_mass = 0.0

    def walk(history: tuple[int, ...], text: bytes, mass: float, first: int | None) -> None:
        nonlocal open_mass
        ended = first is not None and history[-1] == END
        if ended or len(text) >= len(consumed) + longest:
            rest = text[len(consumed) :]
            goal = target.first(rest) if rest else target.end
            assert goal is not None
            found[goal] = found.get(goal, 0.0) + mass
            settled = first == END or is_settled(piece(source.vocabulary, first or 0)[len(consumed) :], target)
            open_mass += 0.0 if settled else mass
            return
        for index, probability in enumerate(source.distribution(history)):
            longer = text + piece(source.vocabulary, index)
            agrees = longer.startswith(consumed) if len(longer) >= len(consumed) else consumed.startswith(longer)
            if agrees and not (index == END and len(text) < len(consumed)):
                walk((*history, index), longer, mass * probability, index if first is None else first)

    walk(history, b"", 1.0, None)
    total = sum(found.values())
    return {index: mass / total for index, mass in found.items()}, open_mass / total


def is_settled(rest: bytes, target: Vocabulary) -> bool:
    """Whether these bytes have the same first target token whatever follows them."""
    return bool(rest) and not any(data and len(data) > len(rest) and data.startswith(rest) for data in target.table)


def greedy(vocabulary: Vocabulary, text: bytes) -> list[int]:
    ids = []
    while text:
        index = vocabulary.first(text)
        assert index is not None
        ids.append(index)
        text = text[len(piece(vocabulary, index)) :]
    return [*ids, END]


def positions(source: Source, target: Vocabulary, response: bytes):
    """Per target position: its rule, the transported masses, the exact ones, the share left open, and the realised token."""
    source_ids, target_ids = greedy(source.vocabulary, response), greedy(target, response)
    full = np.array([source.distribution(tuple(source_ids[:s])) for s in range(len(source_ids))])
    order = np.argsort(-full, axis=1)
    topk = TopK(order.astype(np.int32), np.log(np.take_along_axis(full, order, axis=1)))
    projection = VocabProjection.build(table_of(source.vocabulary), table_of(target))
    realised = np.log(full[np.arange(len(source_ids)), source_ids])
    out = transport(
        np.array(source_ids), realised, topk, np.array(target_ids), response, projection, top_k=len(target.table)
    )
    starts = np.cumsum([0, *(len(piece(source.vocabulary, index)) for index in source_ids)])
    here = 0
    for t, index in enumerate(target_ids):
        s = len(source_ids) - 1 if index == END else int(np.searchsorted(starts, here, side="right")) - 1
        consumed = response[starts[s] : here] if index != END else b""
        masses = {
            int(i): float(np.exp(value))
            for i, value in zip(out.topk.ids[t], out.topk.logprobs[t], strict=True)
            if np.isfinite(value)
        }
        wanted, left_open = exact(source, target, tuple(source_ids[:s]), consumed)
        yield Rule(out.rules[t]), masses, wanted, left_open, index
        here += len(piece(target, index))


@cache
def alphabet(letters: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([letter]) for letter in letters)


def vocabulary(*longer: bytes, letters: bytes = b"ab") -> Vocabulary:
    return Vocabulary([None, *alphabet(letters), *longer], end=END)


PIECES = st.lists(st.text("ab", min_size=2, max_size=3).map(str.encode), max_size=3, unique=True)


@settings(max_examples=60)
@given(ours=PIECES, theirs=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_what_a_position_does_not_know_bounds_its_error(ours, theirs, response, seed):
    source, target = Source(vocabulary(*ours), seed), vocabulary(*theirs)
    for rule, masses, wanted, left_open, _ in positions(source, target, response):
        if rule == Rule.NONE:
            continue
        tail = 1 - sum(masses.values())
        assert tail >= -ROUNDING
        distance = (sum(abs(masses.get(i, 0.0) - wanted.get(i, 0.0)) for i in masses | wanted) + tail) / 2
        assert distance <= left_open + ROUNDING, rule


@settings(max_examples=60)
@given(longer=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_exact_wherever_the_source_token_settles_the_next_target_token(longer, response, seed):
    """A target of single bytes never looks beyond a source token, and no source token begins another: exact throughout."""
    pieces = [*longer, *(letter for letter in alphabet(b"ab") if not any(data.startswith(letter) for data in longer))]
    assume(not any(a != b and b.startswith(a) for a in pieces for b in pieces))
    source = Source(Vocabulary([None, *pieces], end=END), seed)
    try:
        greedy(source.vocabulary, response)
    except AssertionError:
        assume(False)
    for rule, masses, wanted, left_open, _ in positions(source, vocabulary(), response):
        assert rule in (Rule.PROJECT, Rule.CONDITION, Rule.END)
        assert left_open == pytest.approx(0.0, abs=1e-12)
        assert masses == pytest.approx(wanted, abs=ROUNDING)


@settings(max_examples=60)
@given(longer=PIECES, response=st.text("ab", max_size=6).map(str.encode), seed=st.integers(0, 1 << 16))
def test_a_chain_is_exact_for_the_realised_token_where_the_source_spells_it_in_one_way(longer, response, seed):
    """A source of single bytes: the product along them is the probability of the target's token, if none goes beyond it."""
    target = vocabulary(*longer)
    for rule, masses, wanted, _, realised in positions(Source(vocabulary(), seed), target, response):
        token = piece(target, realised)
        extended = any(data and data != token and data.startswith(token) for data in target.table)
        if rule == Rule.CHAIN and not extended:
            assert masses[realised] == pytest.approx(wanted[realised], rel=ROUNDING)
