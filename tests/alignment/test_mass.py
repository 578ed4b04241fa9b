import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.alignment.mass import sum_top_k


@given(
    seed=st.integers(0, 1 << 20),
    num=st.integers(1, 5),
    width=st.integers(1, 20),
    top_k=st.integers(1, 24),
    vocab_size=st.sampled_from([2, 6, 200_000]),
)
def test_masses_of_equal_ids_are_summed_and_the_largest_kept(seed, num, width, top_k, vocab_size):
    generator = np.random.default_rng(seed)
    ids = generator.integers(-1, vocab_size, (num, width)).astype(np.int32)
    mass = -np.sort(-generator.dirichlet(np.ones(width + 1), num)[:, :width], axis=1)
    mass[generator.random((num, width)) < 0.2] = 0.0
    with np.errstate(divide="ignore"):
        out = sum_top_k(ids, np.log(mass), top_k)
    for row in range(num):
        wanted: dict[int, float] = {}
        for index, value in zip(ids[row].tolist(), mass[row].tolist(), strict=True):
            if index >= 0 and value:
                wanted[index] = wanted.get(index, 0.0) + value
        largest = sorted(wanted.values(), reverse=True)[:top_k]
        got = np.exp(out.logprobs[row])
        np.testing.assert_allclose(got[: len(largest)], largest, rtol=1e-5)
        assert (got[len(largest) :] == 0).all()
        assert (out.ids[row, len(largest) :] == 0).all()
        for index, value in zip(out.ids[row].tolist(), got.tolist(), strict=True):
            assert value == 0 or value == pytest.approx(wanted[index], rel=1e-5)


def test_rows_without_collisions_are_unchanged_to_the_bit():
    ids = np.array([[5, 3, 9]], dtype=np.int32)
    logprobs = np.log(np.array([[0.6, 0.3, 0.05]])).astype(np.float16)
    out = sum_top_k(ids, logprobs, 3)
    assert out.logprobs.dtype == np.float16
    np.testing.assert_array_equal(out.ids, ids)
    np.testing.assert_array_equal(out.logprobs, logprobs)


def test_equal_masses_are_ordered_by_id():
    out = sum_top_k(np.array([[7, 2, -1, 4]], dtype=np.int32), np.log(np.full((1, 4), 0.25)), 4)
    assert out.ids.tolist() == [[2, 4, 7, 0]]
