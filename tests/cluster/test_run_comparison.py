"""Comparison of two artifacts: missing, duplicated and different rows are counted, and numbers are compared."""

import math

import pyarrow as pa
import pytest

from cluster.harness.run_comparison import ArtifactDifference, table_difference
from profuser.artifacts.artifact import Artifact
from profuser.storage.folder import Folder

SCHEMA = pa.schema([("row_id", pa.string()), ("text", pa.string()), ("logprobs", pa.list_(pa.float64()))])
ROWS = [{"row_id": str(n), "text": f"answer {n}", "logprobs": [-0.5, -math.inf]} for n in range(4)]


@pytest.fixture
def compare(tmp_path):
    def call(rows):
        artifacts = []
        for name, content in (("first", ROWS), ("second", rows)):
            artifacts.append(Artifact(Folder.at(str(tmp_path / name)), "collect/a", SCHEMA))
            artifacts[-1].write_shard(0, pa.Table.from_pylist(content, SCHEMA), {"rows": len(content)})
        return table_difference(*artifacts)

    return call


def test_the_order_of_rows_does_not_matter(compare):
    assert compare(ROWS[::-1]) == ArtifactDifference("collect/a", 4, 0, 0, 0.0)


def test_a_missing_row_a_duplicate_and_a_changed_text_are_counted(compare):
    found = compare([ROWS[0], ROWS[0], ROWS[1], ROWS[2] | {"text": "another"}])
    assert (found.num_missing, found.num_unlike) == (2, 1)


def test_the_largest_difference_of_numbers_is_reported(compare):
    found = compare([*ROWS[:3], ROWS[3] | {"logprobs": [-0.75, -math.inf]}])
    assert (found.num_unlike, found.largest) == (0, 0.25)
    assert compare([*ROWS[:3], ROWS[3] | {"logprobs": [-0.5]}]).num_unlike == 1
