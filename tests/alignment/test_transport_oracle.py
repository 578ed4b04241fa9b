"""Tests transport of random rows between random small vocabularies against the simple loop in oracle.py."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.alignment.next_steps import find_used_up
from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import DISTRIBUTION_RULES, AlignmentRules
from tests.alignment.oracle import Vocabulary, transport_row

LETTERS = b"ab \xe4"


@st.composite
def vocabularies(draw) -> Vocabulary:
    longer = st.lists(st.sampled_from(LETTERS), min_size=2, max_size=4).map(bytes)
    pieces = draw(st.lists(longer, max_size=14, unique=True))
    return Vocabulary([None, *(bytes([byte]) for byte in LETTERS), *pieces, None], end=0)


def table_of(vocabulary: Vocabulary) -> TokenBytes:
    return TokenBytes.from_table(vocabulary.table, end_ids=[vocabulary.end])


@st.composite
def rows(draw, source: Vocabulary, target: Vocabulary):
    response = bytes(draw(st.lists(st.sampled_from(LETTERS), max_size=8)))
    ended = draw(st.booleans())
    source_ids, target_ids = (draw(tokenizations(side, response, ended)) for side in (source, target))
    return response, source_ids, target_ids


@st.composite
def tokenizations(draw, vocabulary: Vocabulary, response: bytes, ended: bool) -> list[int]:
    """Draws any sequence of tokens that spells the response, with or without a space before it."""
    left = draw(st.sampled_from([b"", b" "])) + response
    ids = []
    while left:
        fitting = [index for index, data in enumerate(vocabulary.table) if data and left.startswith(data)]
        ids.append(draw(st.sampled_from(fitting)))
        left = left[len(vocabulary.table[ids[-1]] or b"") :]
    return [*ids, vocabulary.end] if ended else ids


def random_signals(seed: int, source: Vocabulary, ids: list[int], top_k: int):
    """Returns distributions over the whole vocabulary, cut to the K most probable, and the tokens' log-probabilities."""
    full = np.random.default_rng(seed).dirichlet(np.full(len(source.table), 0.4), size=len(ids)) + 1e-9
    full /= full.sum(axis=1, keepdims=True)
    best = np.argsort(-full, axis=1)[:, :top_k]
    topk = TopK(ids=best, logprobs=np.log(np.take_along_axis(full, best, axis=1)))
    return topk, np.log(full[np.arange(len(ids)), ids])


def random_steps(flat, batch, source, target, rules, top_k):
    """Returns random next steps of a random subset of the used-up candidates, also by row, position in it and candidate."""
    goals = Ragged.from_rows([row[2] for row in batch], dtype=np.int64)
    found = find_used_up(flat, goals, [row[0] for row in batch], table_of(source), table_of(target), rules)
    kept = np.random.default_rng(len(found[0])).random(len(found[0])) < 0.8
    positions, candidates = (part[kept] for part in found)
    topk, _ = random_signals(len(kept), source, [0] * len(positions), top_k)
    rows = flat.ids.row_of[positions]
    keys = zip(rows.tolist(), (positions - flat.ids.offsets[rows]).tolist(), candidates.tolist(), strict=True)
    return NextSteps(positions, candidates, topk), dict(zip(keys, as_dicts(topk), strict=True))


def as_dicts(topk):
    return [
        dict(zip(*pair, strict=True)) for pair in zip(topk.ids.tolist(), np.exp(topk.logprobs).tolist(), strict=True)
    ]


@pytest.mark.parametrize("condition", ["tail", "exact"])
@settings(max_examples=150)
@given(data=st.data())
def test_transport_agrees_with_the_oracle(condition, data):
    source, target = data.draw(vocabularies()), data.draw(vocabularies())
    batch = data.draw(st.lists(rows(source, target), min_size=1, max_size=3))
    top_k = data.draw(st.integers(1, len(source.table)))
    off = data.draw(st.sets(st.sampled_from(["project", "condition", "chain", "end"]), max_size=2))
    projection = VocabProjection.build(table_of(source), table_of(target))
    signals = [random_signals(seed, source, row[1], top_k) for seed, row in enumerate(batch)]
    flat = SourceSignals(
        Ragged.from_rows([row[1] for row in batch], dtype=np.int64),
        np.concatenate([logprobs for _, logprobs in signals]),
        TopK(*(np.concatenate([getattr(topk, name) for topk, _ in signals]) for name in ("ids", "logprobs"))),
    )
    rules, steps, next_tokens = AlignmentRules.only(set(DISTRIBUTION_RULES) - set(off)), None, {}
    if condition == "exact":
        steps, next_tokens = random_steps(flat, batch, source, target, rules, top_k)
    found = transport_rows(
        replace(flat, steps=steps),
        Ragged.from_rows([row[2] for row in batch], dtype=np.int64),
        [row[0] for row in batch],
        projection,
        rules,
        top_k=len(target.table),
    )
    assert not found.refused
    for index, ((response, source_ids, target_ids), (topk, logprobs)) in enumerate(zip(batch, signals, strict=True)):
        own = {(at, c): after for (row, at, c), after in next_tokens.items() if row == index}
        wanted = transport_row(source, target, source_ids, logprobs, as_dicts(topk), target_ids, response, off, own)
        row = found.row(index)
        assert row.rules.tolist() == [rule for rule, _ in wanted]
        for t, (_, masses) in enumerate(wanted):
            assert_masses(row.topk.ids[t], row.topk.logprobs[t], masses)


def assert_masses(ids, logprobs, wanted):
    got = {int(index): float(np.exp(value)) for index, value in zip(ids, logprobs, strict=True) if np.isfinite(value)}
    assert sum(np.isfinite(logprobs)) == len(got), "an id occurs twice"
    assert (np.diff(logprobs[np.isfinite(logprobs)]) <= 1e-6).all(), "out of order"
    for index in got.keys() | wanted.keys():
        assert got.get(index, 0.0) == pytest.approx(wanted.get(index, 0.0), rel=1e-5, abs=1e-9)
    assert sum(got.values()) <= 1.0 + 1e-5
