"""CPUs of engines: whole ones, at least one, shared equally by the engines of a node."""

import pytest

from ray_jobs.runtime.nodes import share_of_cpus


@pytest.mark.parametrize(
    ("free", "num_engines", "share"),
    [
        ([8.0], 1, 8),
        ([8.0], 3, 2),
        ([2.0], 3, 1),
        ([0.5], 1, 1),
        ([], 4, 1),
        ([4.0, 16.0], 1, 16),  # it goes to the larger node
        ([4.0, 16.0], 2, 4),  # one on each: both must fit
        ([4.0, 16.0], 4, 2),
        ([7.9, 16.0, 0.0], 2, 7),
    ],
)
def test_engines_share_the_free_cpus(free, num_engines, share):
    assert share_of_cpus(free, num_engines) == share
