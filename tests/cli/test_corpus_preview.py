"""What `--dry-run` and `plan` say of a corpus that would be held out whole."""

import json
from types import SimpleNamespace

import pytest

from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from ray_jobs.cli.corpus import print_corpus


def show(folder, heldout_rows, *limits, rows=30):
    parts = []
    for name, limit in zip("ab", limits, strict=True):
        file = folder / f"{name}.jsonl"
        lines = [{"question": f"{name} {number}", "answer": "x"} for number in range(rows)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        parts.append({"name": name, "path": str(file), **limit})
    config = CorpusConfig.model_validate({"parts": parts, "heldout_rows": heldout_rows})
    print_corpus(SimpleNamespace(corpus_config=config, recipe=SimpleNamespace(seed=0)))


@pytest.mark.parametrize("limits", [({}, {}), ({"max_rows": 40}, {"share": 1.0})], ids=["whole", "limits not reached"])
def test_a_mix_that_is_held_out_whole_is_refused(tmp_path, limits):
    with pytest.raises(UserError, match=r"60 usable rows, and corpus.heldout_rows=60 holds out all of them"):
        show(tmp_path, 60, *limits)
    show(tmp_path, 59, *limits)


def test_limits_bound_a_mix_that_was_not_read_to_its_end(tmp_path):
    with pytest.raises(UserError, match=r"20 usable rows, and corpus.heldout_rows=20 holds out all of them"):
        show(tmp_path, 20, {"max_rows": 5}, {"share": 0.5})
    # Longer than what is read here: only the limits are known.
    with pytest.raises(UserError, match=r"10 usable rows, and corpus.heldout_rows=10"):
        show(tmp_path, 10, {"max_rows": 5}, {"max_rows": 5}, rows=2_100)
    show(tmp_path, 1_000, {"max_rows": 5}, {}, rows=2_100)
