"""Tests selection over a shard: a source whose tokens do not spell a response does not teach it, and all rows are counted."""

import numpy as np
import pytest

from profuser.signals.codec import from_columns
from tests.selection.shard import SOURCES, WIDTH, K, composing, select
from tests.tiny import byte_level_tokenizer


@pytest.fixture(scope="module")
def selected():
    return select()


def test_a_source_does_not_teach_a_ground_truth_that_its_tokens_do_not_spell(selected):
    table, counts = selected
    teachers = {row["row_id"]: row["teacher"] for row in table.to_pylist() if row["mode"] == "training"}
    assert teachers == {"0": "lossy", "1": "plain", "2": "lossy"}
    advantages = {row["row_id"]: row["advantages"] for row in table.to_pylist() if row["mode"] == "training"}
    assert np.isnan(advantages["1"]).tolist() == [True, False]
    assert (counts["misspelt/lossy"], counts["misspelt/plain"]) == (1, 0)


@pytest.mark.parametrize("together", [{}, {"training_teacher": "average"}])
def test_an_example_that_the_targets_tokens_do_not_spell_is_left_out_and_counted(selected, together):
    (usual, before), (table, counts) = select(**together), select(tokenizer=composing(), **together)
    # The ground truth of row 1 is not composed; the sources give equal answers to each row, and the first is taken.
    kept = [
        (row["row_id"], row["mode"]) for row in usual.to_pylist() if (row["row_id"], row["mode"]) != ("1", "training")
    ]
    assert [(row["row_id"], row["mode"]) for row in table.to_pylist()] == kept
    assert (counts["misspelt_by_target"], before["misspelt_by_target"]) == (1, 0)
    assert counts["examples"] == table.num_rows == before["examples"] - 1
    assert sum(value for name, value in counts.items() if name.startswith("wins/")) == table.num_rows


def test_an_example_that_the_targets_template_refuses_is_left_out_and_counted(selected):
    tokenizer = byte_level_tokenizer(480)
    tokenizer.chat_template = (
        "{% for m in messages if m.content.strip() == 'It is 7.' %}{{ raise_exception('no sevens') }}{% endfor %}"
        + tokenizer.chat_template
    )
    (_, before), (table, counts) = selected, select(tokenizer=tokenizer)
    assert (counts["refused_by_target"], counts["misspelt_by_target"]) == (1, 0)
    assert counts["examples"] == table.num_rows == before["examples"] - 1
    assert [row["row_id"] for row in table.to_pylist() if row["mode"] == "inference"] == ["1", "2"]


def test_every_position_is_counted_once_per_pair_and_rule(selected):
    table, counts = selected
    tokens = sum(len(row["response_ids"]) for row in table.to_pylist())
    assert counts["tokens"] == tokens == sum(value for name, value in counts.items() if name.startswith("rule/"))
    assert tokens == sum(value for name, value in counts.items() if name.startswith("alignment/"))
    assert counts["not_aligned"] == 0
    topk = from_columns(table, "topk", K, WIDTH)
    taught = np.isfinite(topk.topk.logprobs[:, 0].astype(np.float32))
    assert taught.sum() == tokens - counts["rule/none"]


def by_row(table, mode):
    """Returns, per row, its example in a mode and the masses of its distributions by id, position by position."""
    topk = from_columns(table, "topk", K, WIDTH)
    out = {}
    for place, row in enumerate(table.to_pylist()):
        if row["mode"] == mode:
            ids, mass = topk.row(place).ids.tolist(), np.exp(topk.row(place).logprobs.astype(np.float64)).tolist()
            out[row["row_id"]] = row, [dict(zip(*pair, strict=True)) for pair in zip(ids, mass, strict=True)]
    return out


def test_the_average_teacher_is_the_mean_of_what_each_source_would_teach():
    alone = [by_row(select([name])[0], "training") for name in SOURCES]
    table, counts = select(training_teacher="average")
    found = by_row(table, "training")
    assert {row["teacher"] for row, _ in found.values()} == {"average"}
    assert found.keys() == {"0", "1", "2"}
    for row_id, (row, taught) in found.items():
        for place, mean in enumerate(taught):
            parts = [one[row_id][1][place] for one in alone if row_id in one]
            parts = [part for part in parts if sum(part.values()) > 0]
            wanted = {token: sum(p.get(token, 0) for p in parts) / len(parts) for p in parts for token in p}
            largest = sorted(wanted.values(), reverse=True)[:K]
            # Both sides were rounded to half precision.
            assert sorted(mean.values(), reverse=True)[: len(largest)] == pytest.approx(largest, rel=5e-3, abs=1e-6)
            assert (row["rules"][place] == 0) == (not parts)
    assert (counts["wins/training/average"], counts["wins/inference/average"]) == (3, 0)
    assert counts["wins/training/lossy"] == counts["wins/training/plain"] == 0


def test_the_average_teacher_does_not_change_inference_mode(selected):
    averaged, chosen = (by_row(table, "inference") for table, _ in (select(training_teacher="average"), selected))
    assert averaged == chosen


def test_only_sources_that_may_teach_are_averaged():
    table, _ = select(["plain"], training_teacher="average")
    mean, alone = by_row(table, "training"), by_row(select(["plain"])[0], "training")
    assert {row_id: taught for row_id, (_, taught) in mean.items()} == {
        row_id: taught for row_id, (_, taught) in alone.items()
    }
