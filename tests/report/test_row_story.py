"""Row stories: which row is picked, and how a source's distributions are shown. tests/ray/test_run.py covers the rest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import ray_jobs
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.alignment.transport import SourceSignals
from profuser.errors import UserError
from profuser.recipe.loading import load_recipe
from profuser.report.row_story import RowStory, signal_rows
from profuser.run.fusion_run import FusionRun
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged

RECIPES = Path(ray_jobs.__file__).parent / "recipes"


def run_with(folder, teachers):
    """Returns a run whose rows have these teachers, one in each mode; llama is the target."""
    run = FusionRun(load_recipe("demo", [f"storage={folder}"], RECIPES))
    selected = run.select()
    empty = {field.name: [] for field in selected.schema if pa.types.is_list(field.type)}
    rows = [
        empty
        | {
            "row_id": row_id,
            "mode": mode,
            "category": None,
            "teacher": teacher,
            "sample": 0,
            "response_bytes": 0,
            "advantages": [0.5] * 3,
        }
        for row_id, by_mode in teachers.items()
        for mode, teacher in zip(("training", "inference"), by_mode, strict=True)
    ]
    if rows:
        selected.write_shard(0, pa.Table.from_pylist(rows, schema=selected.schema), {"rows": len(rows)})
    return run


@pytest.mark.parametrize(
    ("teachers", "picked"),
    [
        ({"a": ("llama", "llama"), "b": ("llama", "mpt"), "c": ("mpt", "neox"), "d": ("neox", "mpt")}, "c"),
        ({"a": ("mpt", "mpt"), "b": ("mpt", "llama"), "c": ("llama", "neox")}, "b"),
        ({"a": ("llama", "llama"), "b": ("llama", "llama")}, "a"),
    ],
)
def test_a_row_with_two_teachers_other_than_the_target_is_picked(tmp_path, teachers, picked):
    story = RowStory.of(run_with(tmp_path, teachers))
    assert story.row_id == picked
    assert [row["teacher"] for row in story.choice()] == list(teachers[picked])


def test_a_run_without_examples_has_no_story(tmp_path):
    with pytest.raises(UserError, match="no training examples yet"):
        RowStory.of(run_with(tmp_path, {}))


def test_distributions_are_decoded_with_their_probabilities():
    tokens = TokenBytes.from_table([b" a", b"b", b"\xff", None], {3: Role.END}, end_ids=[3])
    topk = TopK(np.array([[0, 1], [3, 2]]), np.log(np.array([[0.5, 0.25], [0.8, 0.1]])))
    signals = SourceSignals(Ragged.from_rows([np.array([1, 3])]), np.log(np.array([0.25, 0.8])), topk)
    first, last = signal_rows(signals, tokens)
    assert (first["token"], first["top 1"], first["top 2"]) == ("b", "\u2423a 0.500", "b 0.250")
    assert (last["token"], last["top 1"], last["top 2"]) == ("end", "end 0.800", "FF 0.100")
    assert (first["probability"], first["in the top-k"]) == pytest.approx((0.25, 0.75))
