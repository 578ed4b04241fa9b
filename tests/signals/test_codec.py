import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.errors import ArtifactError
from profuser.signals.codec import (
    RaggedTopK,
    TopK,
    from_columns,
    from_list_column,
    id_dtype,
    to_columns,
    topk_fields,
)
from profuser.signals.ragged import Ragged


def random_topk(seed: int, num_positions: int, top_k: int, vocab_size: int) -> TopK:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab_size, (num_positions, top_k))
    logprobs = -np.sort(generator.exponential(5.0, (num_positions, top_k)), axis=1)
    logprobs[generator.random((num_positions, top_k)) < 0.1] = -np.inf
    return TopK(ids=ids, logprobs=-np.sort(-logprobs, axis=1).astype(np.float32))


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    top_k=st.integers(1, 64),
    vocab_size=st.sampled_from([2, 300, 65_536, 65_537, 131_072, 151_936, 262_144, 262_208, 524_289]),
)
def test_round_trip_through_parquet_keeps_rows(lengths, top_k, vocab_size):
    rows = [random_topk(seed, length, top_k, vocab_size) for seed, length in enumerate(lengths)]
    columns = to_columns("topk", rows, vocab_size)
    schema = pa.schema(topk_fields("topk", vocab_size))
    assert {name: column.type for name, column in columns.items()} == {field.name: field.type for field in schema}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    back = from_columns(pq.read_table(io.BytesIO(buffer.getvalue())), "topk", top_k, vocab_size)
    assert len(back) == len(rows)
    for row, found in zip(rows, back.rows(), strict=True):
        np.testing.assert_array_equal(found.ids, row.ids)
        np.testing.assert_array_equal(found.logprobs, row.logprobs.astype(np.float16))


@pytest.mark.parametrize(
    ("vocab_size", "most"), [(32_000, 40), (65_536, 40), (131_072, 42), (151_936, 43), (524_288, 44)]
)
def test_ten_candidates_of_a_token_take_at_most_44_bytes(vocab_size, most):
    columns = to_columns("topk", [random_topk(0, 1000, 10, vocab_size)], vocab_size)
    assert sum(column.values.nbytes for column in columns.values()) == 1000 * most


def test_reading_copies_nothing_and_honours_slices():
    rows = [random_topk(seed, 4 + seed, 3, 100) for seed in range(5)]
    columns = to_columns("topk", rows, 100)
    back = from_columns(columns, "topk", 3, 100)
    for name, array in (("topk_ids", back.topk.ids), ("topk_logprobs", back.topk.logprobs)):
        buffer = columns[name].values.buffers()[1]
        assert buffer.address <= array.ctypes.data < buffer.address + buffer.size
    for vocab_size in (100, 70_000):
        columns = to_columns("topk", rows, vocab_size)
        part = from_columns({name: column.slice(2, 2) for name, column in columns.items()}, "topk", 3, vocab_size)
        np.testing.assert_array_equal(part.row(1).ids, rows[3].ids)


def test_chunks_and_nulls_read_as_rows():
    for vocab_size in (9, 70_000):
        columns = to_columns("topk", [random_topk(1, 2, 2, 9)], vocab_size)
        nulls = {name: pa.array([None], type=column.type) for name, column in columns.items()}
        chunked = {name: pa.chunked_array([column, nulls[name], column]) for name, column in columns.items()}
        assert [row.num_positions for row in from_columns(chunked, "topk", 2, vocab_size).rows()] == [2, 0, 2]


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_different_top_k_is_refused(top_k):
    with pytest.raises(ArtifactError, match="top_k"):
        from_columns(to_columns("topk", [random_topk(1, 2, 2, 9)], 9), "topk", top_k, 9)


def test_damaged_columns_are_refused():
    columns = to_columns("topk", [random_topk(1, 2, 2, 9)], 9)
    longer = to_columns("topk", [random_topk(1, 3, 2, 9)], 9)
    with pytest.raises(ArtifactError, match="different lengths"):
        from_columns(columns | {"topk_logprobs": longer["topk_logprobs"]}, "topk", 2, 9)
    with pytest.raises(ArtifactError, match="null"):
        from_columns(columns | {"topk_ids": pa.array([[1, None, 2, 3]], type=pa.list_(pa.uint16()))}, "topk", 2, 9)
    with pytest.raises(ArtifactError, match="column of lists"):
        from_list_column(pa.array([1, 2]))
    large, larger = (to_columns("topk", [random_topk(1, num, 2, 9)], 70_000) for num in (2, 3))
    with pytest.raises(ArtifactError, match="1 bytes per token"):
        from_columns(large | {"topk_ids_high": larger["topk_ids_high"]}, "topk", 2, 70_000)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ArtifactError, match="vocabulary"):
        to_columns("topk", [TopK(ids=np.array([[7]]), logprobs=np.array([[0.0]]))], 7)


def test_tail_mass_is_the_mass_outside_the_top_k():
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
