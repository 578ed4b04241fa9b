import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.errors import ArtifactError
from profuser.signals.codec import RaggedTopK, TopK, from_columns, from_list_column, id_dtype, to_columns
from profuser.signals.ragged import Ragged


def random_topk(seed: int, num_positions: int, top_k: int, vocab_size: int) -> TopK:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab_size, (num_positions, top_k))
    logprobs = -np.sort(generator.exponential(5.0, (num_positions, top_k)), axis=1)
    logprobs[generator.random((num_positions, top_k)) < 0.1] = -np.inf
    return TopK(ids=ids, logprobs=-np.sort(-logprobs, axis=1).astype(np.float32))


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    top_k=st.integers(1, 12),
    vocab_size=st.sampled_from([2, 300, 65_536, 65_537, 151_936]),
)
def test_round_trip_through_parquet_keeps_rows(lengths, top_k, vocab_size):
    rows = [random_topk(seed, length, top_k, vocab_size) for seed, length in enumerate(lengths)]
    ids, logprobs = to_columns(rows, vocab_size)
    assert ids.type == pa.list_(pa.uint16() if vocab_size <= 65_536 else pa.int32())
    assert logprobs.type == pa.list_(pa.float16())
    buffer = io.BytesIO()
    pq.write_table(pa.table({"ids": ids, "logprobs": logprobs}), buffer, compression="zstd")
    table = pq.read_table(io.BytesIO(buffer.getvalue()))
    back = from_columns(table["ids"], table["logprobs"], top_k)
    assert len(back) == len(rows)
    for row, found in zip(rows, back.rows(), strict=True):
        np.testing.assert_array_equal(found.ids, row.ids)
        np.testing.assert_array_equal(found.logprobs, row.logprobs.astype(np.float16))


def test_reading_copies_nothing_and_honours_slices():
    rows = [random_topk(seed, 4 + seed, 3, 100) for seed in range(5)]
    ids, logprobs = to_columns(rows, 100)
    back = from_columns(ids, logprobs, 3)
    buffer = ids.values.buffers()[1]
    assert buffer.address <= back.topk.ids.ctypes.data < buffer.address + buffer.size
    part = from_columns(ids.slice(2, 2), logprobs.slice(2, 2), 3)
    np.testing.assert_array_equal(part.row(1).ids, rows[3].ids)


def test_chunks_and_nulls_read_as_rows():
    first = to_columns([random_topk(1, 2, 2, 9)], 9)
    null = pa.array([None], type=first[0].type), pa.array([None], type=first[1].type)
    ids, logprobs = (pa.chunked_array([first[column], null[column], first[column]]) for column in (0, 1))
    assert [row.num_positions for row in from_columns(ids, logprobs, 2).rows()] == [2, 0, 2]


@pytest.mark.parametrize("top_k", [0, 3])
def test_another_top_k_is_refused(top_k):
    with pytest.raises(ArtifactError, match="top_k"):
        from_columns(*to_columns([random_topk(1, 2, 2, 9)], 9), top_k)


def test_damaged_columns_are_refused():
    ids, logprobs = to_columns([random_topk(1, 2, 2, 9)], 9)
    longer = to_columns([random_topk(1, 3, 2, 9)], 9)[1]
    with pytest.raises(ArtifactError, match="different lengths"):
        from_columns(ids, longer, 2)
    with pytest.raises(ArtifactError, match="null"):
        from_columns(pa.array([[1, None, 2, 3]], type=ids.type), logprobs, 2)
    with pytest.raises(ArtifactError, match="column of lists"):
        from_list_column(pa.array([1, 2]))


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ArtifactError, match="vocabulary"):
        to_columns([TopK(ids=np.array([[7]]), logprobs=np.array([[0.0]]))], 7)


def test_tail_mass_is_what_the_top_k_leave():
    topk = TopK(
        ids=np.array([[3, 1], [2, 0], [1, 0]]),
        logprobs=np.log(np.array([[0.5, 0.25], [1.0, 1e-30], [0.7, 0.4]], dtype=np.float32)),
    )
    np.testing.assert_allclose(topk.tail_mass(), [0.25, 0.0, 0.0], atol=1e-6)
    empty = TopK(ids=np.zeros((1, 2), dtype=np.int32), logprobs=np.full((1, 2), -np.inf))
    assert empty.tail_mass() == [1.0]


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="top-k of the rows"):
        RaggedTopK.from_rows([random_topk(0, 1, 2, 9), random_topk(0, 1, 3, 9)])
    with pytest.raises(ValueError, match="offsets"):
        Ragged(values=np.arange(3), offsets=np.array([0, 2]))


def test_id_dtype_is_the_smallest_that_fits():
    assert [id_dtype(size) for size in (1, 65_536, 65_537)] == [np.uint16, np.uint16, np.int32]
