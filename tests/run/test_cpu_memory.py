"""What a run without GPUs says about the memory of training, before anything is collected."""

from types import SimpleNamespace

import pytest

from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.pipeline import checks
from tests import tiny


@pytest.fixture
def run(tmp_path):
    def of(**fuse):
        model = tiny.llama(tmp_path / "target")
        recipe = {
            "name": "mine",
            "storage": str(tmp_path),
            "corpus": {"path": str(tmp_path / "rows.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
            "fuse": {"max_tokens": 128, "micro_batch_tokens": 512, **fuse},
        }
        return FusionRun(parse_recipe(recipe, "the test"))

    return of


def test_a_small_target_and_one_for_gpus_need_no_line(run, monkeypatch):
    assert checks.cpu_memory_lines(run()) == []
    monkeypatch.setattr(checks, "LARGE_TARGET", 0)
    assert checks.cpu_memory_lines(run(workers={"use_gpu": True})) == []


@pytest.mark.parametrize(("total", "too_much"), [(2**34, False), (2**20, True)])
def test_the_memory_of_all_workers_is_compared_with_the_machines(run, monkeypatch, total, too_much):
    monkeypatch.setattr(checks, "LARGE_TARGET", 0)
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(total=total))
    (line,) = checks.cpu_memory_lines(run(workers={"num_workers": 3}))
    assert line.startswith("fuse: without a GPU, 3 workers need 0.0 GiB each, in float32; this machine has ")
    assert ("lower fuse.micro_batch_tokens (512)" in line) == too_much
