"""Tests the mean of several sources' distributions against dictionaries and loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from profuser.alignment.averaging import average_rows, average_top_k, spread_rows
from profuser.alignment.transport import TransportedRows
from profuser.signals.codec import RaggedTopK, TopK
from profuser.signals.ragged import Ragged, offsets_of
from profuser.signals.rules import Rule

VOCAB_SIZE = 12


def drawn(generator, num, top_k, dtype):
    """Returns distributions with a tail; some positions have none, and some have fewer candidates than K."""
    ids = np.stack([generator.permutation(VOCAB_SIZE)[:top_k] for _ in range(num)]).astype(np.int32)
    mass = -np.sort(-generator.dirichlet(np.ones(top_k + 1), num)[:, :top_k], axis=1)
    mass[np.arange(top_k) >= generator.integers(0, top_k + 1, num)[:, None]] = 0.0
    ids[mass == 0] = 0
    with np.errstate(divide="ignore"):
        return TopK(ids, np.log(mass).astype(dtype))


def masses(topk, place):
    """Returns one position as probabilities by id."""
    pairs = zip(topk.ids[place].tolist(), np.exp(topk.logprobs[place].astype(np.float64)).tolist(), strict=True)
    return {token: mass for token, mass in pairs if mass > 0}


def slow_mean(parts, place):
    available = [found for part in parts if (found := masses(part, place))]
    return {token: sum(f.get(token, 0.0) for f in available) / len(available) for f in available for token in f}


@given(
    seed=st.integers(0, 1 << 20),
    num_sources=st.integers(1, 4),
    kept=st.integers(1, 14),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_the_mean_is_over_the_sources_that_have_a_distribution(seed, num_sources, kept, dtype):
    generator = np.random.default_rng(seed)
    parts = [drawn(generator, 6, int(generator.integers(1, 6)), dtype) for _ in range(num_sources)]
    out = average_top_k(parts, kept)
    assert out.ids.shape == (6, kept)
    for place in range(6):
        wanted, found = slow_mean(parts, place), masses(out, place)
        largest = sorted(wanted.values(), reverse=True)[:kept]
        np.testing.assert_allclose(sorted(found.values(), reverse=True), largest, rtol=1e-5)
        for token, mass in found.items():
            np.testing.assert_allclose(mass, wanted[token], rtol=1e-5)


@given(seed=st.integers(0, 1 << 20), num_sources=st.integers(1, 4))
def test_mass_is_conserved(seed, num_sources):
    generator = np.random.default_rng(seed)
    parts = [drawn(generator, 20, 4, np.float16) for _ in range(num_sources)]
    tails = np.stack([part.tail_mass() for part in parts])
    present = np.stack([part.logprobs[:, 0] > -np.inf for part in parts])
    mean = np.where(present, tails, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    whole = average_top_k(parts, 4 * num_sources)
    stored = TopK(whole.ids, whole.logprobs.astype(np.float16))
    # The error of half precision is p * |log p| / 2048 per candidate, at most log(16) / 2048 in total.
    np.testing.assert_allclose(stored.tail_mass(), np.where(present.any(axis=0), mean, 1.0), atol=1.4e-3)
    # What is not kept goes to the tail.
    assert (average_top_k(parts, 2).tail_mass() >= whole.tail_mass() - 1e-6).all()


def test_a_single_source_is_unchanged():
    part = drawn(np.random.default_rng(0), 30, 5, np.float16)
    out = average_top_k([part], 5)
    np.testing.assert_array_equal(out.ids, part.ids)
    np.testing.assert_array_equal(out.logprobs.astype(np.float16), part.logprobs)


def rows(rules, lengths, refused=()):
    """Returns rows where each position with a rule has one candidate, whose id is the rule."""
    rules = np.array(rules, dtype=np.uint8)
    logprobs = np.where(rules[:, None] == Rule.NONE, -np.inf, 0.0).astype(np.float32)
    offsets = offsets_of(np.array(lengths))
    topk = TopK(rules[:, None].astype(np.int32), logprobs)
    return TransportedRows(RaggedTopK(topk, offsets), Ragged(rules, offsets), dict.fromkeys(refused, "misspelt"))


def test_rows_that_one_source_refused_are_taught_by_the_others():
    offsets = offsets_of(np.array([2, 1, 2]))
    # The first source takes rows 0 and 2; the second takes all three, but cannot align row 2.
    first = spread_rows(rows([1, 2, 3, 0], [2, 2]), np.array([0, 2]), offsets)
    second = spread_rows(rows([0, 4, 4, 0, 0], [2, 1, 2], [2]), np.array([0, 1, 2]), offsets)
    assert first.rules.values.tolist() == [1, 2, 0, 3, 0]
    assert list(first.refused) == [1]
    out = average_rows([first, second], np.array([[1, 0], [1, 0], [1, 0]]), 2)
    # The second ranks higher: its rule where it has one, the first's elsewhere.
    assert out.rules.values.tolist() == [1, 4, 4, 3, 0]
    assert out.refused == {}
    found = [{token: round(mass, 6) for token, mass in masses(out.topk.topk, place).items()} for place in range(5)]
    assert found == [{1: 1.0}, {2: 0.5, 4: 0.5}, {4: 1.0}, {3: 1.0}, {}]


def test_a_row_is_refused_if_all_sources_refuse_it():
    offsets = offsets_of(np.array([1, 1]))
    part = spread_rows(rows([0, 1], [1, 1], [0]), np.array([0, 1]), offsets)
    other = spread_rows(rows([1], [1]), np.array([1]), offsets)
    assert list(average_rows([part, other], np.zeros((2, 2), dtype=np.int64), 1).refused) == [0]
