"""Tests where the target splits source tokens, against the tokenizer itself and against greedy splitting."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings

from profuser.alignment.splits import TargetSplits
from profuser.alignment.token_bytes import TokenBytes
from tests.alignment.oracle import Vocabulary
from tests.alignment.test_transport_oracle import LETTERS, table_of, vocabularies

NAMES = ["byte_level", "llama_like", "metaspace", "unigram"]


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_a_split_is_a_boundary_of_the_targets_own_tokens(families, source, target):
    tables = [TokenBytes.from_tokenizer(families[name], 512) for name in (source, target)]
    splits = TargetSplits(*tables)
    before = families[target].encode(",", add_special_tokens=False)
    num_compared = 0
    for index in np.flatnonzero(tables[0].lengths > 1).tolist():
        data = tables[0][index] or b""
        places = np.arange(len(data) + 1)
        found = splits.inside(np.full(len(places), index), places)
        try:
            # A token before the bytes shows how they are tokenized in the middle of a text.
            own = families[target].encode("," + data.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            assert found.all(), "partial characters are kept"
            continue
        if own[: len(before)] == before:
            num_compared += 1
            ends = np.cumsum([0, *tables[1].lengths[own[len(before) :]]])
            assert np.flatnonzero(found).tolist() == ends.tolist(), data
    assert num_compared > 30


@settings(max_examples=100)
@given(source=vocabularies(), target=vocabularies())
def test_a_table_without_a_tokenizer_is_split_greedily_into_the_longest_tokens(source, target):
    splits = TargetSplits(table_of(source), table_of(target))
    texts = [index for index, data in enumerate(source.table) if data]
    for first in texts:
        data = source.table[first] or b""
        places = np.arange(len(data) + 1)
        assert splits.inside(np.full(len(places), first), places).tolist() == [
            target.splits(data, place) for place in places
        ]
        found = splits.between(np.full(len(texts), first), np.array(texts))
        assert found.tolist() == [target.splits(data + (source.table[second] or b""), len(data)) for second in texts]


def test_bytes_before_an_end_of_turn_and_unknown_bytes_count_as_split():
    source, target = Vocabulary([None, b"a", b"xa"], end=0), Vocabulary([None, b"a"], end=0)
    splits = TargetSplits(table_of(source), table_of(target))
    assert splits.between(np.array([1, 2]), np.array([0, 1])).tolist() == [True, True]
    assert splits.inside(np.array([2]), np.array([1])).tolist() == [True]
    assert splits.inside(np.array([], dtype=int), np.array([], dtype=int)).shape == (0,)


def test_a_pickled_copy_fills_its_own_table():
    table = table_of(Vocabulary([None, *(bytes([byte]) for byte in LETTERS), b"aab"], end=0))
    splits = TargetSplits(table, table)
    copy = pickle.loads(pickle.dumps(splits))
    for each in (copy, splits):
        assert each.inside(np.array([5, 5]), np.array([1, 2])).tolist() == [False, False]
