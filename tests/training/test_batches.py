"""Which rows form which update: every row once per epoch, equal updates for any number of workers, nothing over its budget."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from profuser.artifacts.schemas import MODES
from profuser.errors import ArtifactError, TrainingError
from profuser.recipe.schedule import ModeWeights, Schedule
from profuser.training.batches import UpdatePlan, count_steps, pack, windows_from
from profuser.training.examples import ExampleIndex
from tests.training.made import Setting, config, make_table, tables

RECIPES = Path(__file__).parents[2] / "ray_jobs" / "recipes"
BOTH = ModeWeights(inference=0.1, training=1.0)


def updates(plan, weights=BOTH, number=60):
    cursor = 0
    for step in range(number):
        update = plan.update(step, cursor, weights)
        yield update
        cursor = update.end


def rows_of(plan, epochs=3):
    """Returns all rows of the stream in order, as updates consume them."""
    found = []
    for update in updates(plan):
        found += [plan._row(place) for place in range(update.cursor, update.end)]
    return [found[i * len(plan.rows) : (i + 1) * len(plan.rows)] for i in range(epochs)]


def test_every_row_occurs_once_per_epoch_in_another_order():
    plan = Setting().plan
    epochs = rows_of(plan)
    assert all(sorted(epoch) == plan.rows.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert rows_of(Setting(seed=1).plan)[0] != epochs[0]
    assert rows_of(Setting().plan) == epochs


def test_an_update_has_all_weighted_modes_of_its_rows_within_the_budget():
    setting = Setting()
    for update in updates(setting.plan):
        size = sum(int(setting.index.tokens[key]) for key in update.keys)
        assert size == update.sequence_tokens <= setting.config.batch_tokens
        rows = [setting.plan._row(place) for place in range(update.cursor, update.end)]
        assert sorted(update.keys) == sorted((r, m) for r in rows for m in (0, 1) if setting.index.tokens[r, m])
        per_mode = [sum(int(setting.index.responses[key]) for key in update.keys if key[1] == m) for m in range(5)]
        assert list(update.num_tokens) == per_mode
        following = setting.plan._row(update.end)
        assert size + setting.index.tokens[following].sum() > setting.config.batch_tokens


def test_a_mode_without_weight_is_not_in_the_update():
    update = Setting().plan.update(0, 0, ModeWeights(inference=1.0, training=0.0))
    assert {MODES[mode] for _, mode in update.keys} == {"inference"}
    assert update.num_tokens[MODES.index("training")] == 0


@pytest.mark.parametrize("packing", [True, False])
def test_an_example_at_the_end_of_an_epoch_and_the_start_of_the_next_is_trained_twice(packing):
    plan = Setting(config(packing=packing, batch_tokens=400)).plan
    twice = [update for update in islice(updates(plan), 30) if len(set(update.keys)) < len(update.keys)]
    assert twice
    for update in twice:
        packs = [each for batch in plan.deal(update, 1, 0) for each in batch]
        assert sorted(key for each in packs for key in each) == sorted(update.keys)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("packing", [True, False])
def test_workers_share_an_update_without_loss_and_with_equal_counts(world_size, packing):
    plan = Setting(config(packing=packing)).plan
    for update in islice(updates(plan), 8):
        parts = [plan.deal(update, world_size, rank) for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        packs = [each for part in parts for batch in part for each in batch]
        assert sorted(key for each in packs for key in each) == sorted(update.keys)
        for each in packs:
            assert sum(int(plan.index.tokens[key]) for key in each) <= plan.config.max_tokens


def test_validation_rows_are_never_trained_on():
    plan = Setting().plan
    assert len(plan.validation) == 3
    assert not set(plan.validation) & {row for epoch in rows_of(plan) for row in epoch}
    assert len(Setting(config(validation_rows=1000)).plan.validation) == 33 // 10


def test_windows_contain_all_updates_in_order():
    setting = Setting()
    schedule = Schedule(setting.config.schedule, setting.plan.num_steps)
    windows = list(windows_from(setting.plan, schedule, 0, 0))
    flat = [update for window in windows for update in window]
    assert [update.step for update in flat] == list(range(6))
    assert all(a.end == b.cursor for a, b in pairwise(flat))
    for window in windows:
        end = setting.plan.window_end(window[0].cursor)
        assert all(update.cursor < end for update in window)
    again = [u for w in windows_from(setting.plan, schedule, flat[3].step, flat[3].cursor) for u in w]
    assert again == flat[3:]


def test_the_number_of_updates_does_not_depend_on_the_schedule():
    pieces = [{"until": 1.0, "inference": i, "training": t} for i, t in ((1, 0), (0, 1), (1, 1))]
    plans = [Setting(config(schedule=[p], duration={"kind": "epochs", "value": 3})).plan for p in pieces]
    assert len({plan.num_steps for plan in plans}) == 1
    index = plans[0].index
    assert plans[0].num_steps == count_steps(plans[0].config, int(index.tokens[plans[0].rows].sum())) > 3


@pytest.mark.parametrize("arm", sorted(file.stem for file in (RECIPES / "arms").glob("*.yaml")))
def test_every_arm_makes_equally_many_updates_of_equally_many_tokens(arm):
    """Uses the arms' own fragments: the budget is filled up to one row's examples, whatever the schedule's weights."""
    fragment = yaml.safe_load((RECIPES / "arms" / f"{arm}.yaml").read_text())["fuse"]
    setting = Setting(config(duration={"kind": "steps", "value": 20}, batch_tokens=300, **fragment))
    schedule = Schedule(setting.config.schedule, setting.plan.num_steps)
    updates = [u for window in windows_from(setting.plan, schedule, 0, 0) for u in window]
    assert len(updates) == 20
    longest = int(setting.index.tokens.sum(axis=1).max())
    assert all(300 - longest < update.sequence_tokens <= 300 for update in updates)


@given(st.lists(st.integers(1, 24), max_size=60))
def test_packs_contain_every_key_once_and_are_nearly_as_few_as_possible(lengths):
    bins = pack(dict(enumerate(lengths)), 24)
    assert sorted(key for each in bins for key in each) == list(range(len(lengths)))
    assert all(sum(lengths[key] for key in each) <= 24 for each in bins)
    assert len(bins) <= 11 / 9 * np.ceil(sum(lengths) / 24) * 1.5 + 1
    # First fit: no two bins would fit into one.
    sums = sorted(sum(lengths[key] for key in each) for each in bins)
    assert len(sums) < 2 or sums[0] + sums[1] > 24


def test_the_index_counts_truncated_and_omitted_examples():
    index = ExampleIndex.build(tables().items(), 6)
    assert index.num_cut > 0
    assert index.num_left_out == 0
    assert index.tokens.max() == 6
    assert ExampleIndex.build(tables().items(), 3).num_left_out > 0
    assert sum(index.teachers.values()) == sum(len(table) for table in tables().values())


def test_the_reader_returns_the_examples_of_the_index():
    setting = Setting()
    wanted = [
        (row, mode) for row in range(len(setting.index.shards)) for mode in (0, 1) if setting.index.tokens[row, mode]
    ]
    found = dict(setting.reader.read(setting.index, wanted))
    assert sorted(found) == sorted(wanted)
    for key, example in found.items():
        assert example.num_tokens == setting.index.tokens[key]
        assert len(example.response_ids) == example.topk.num_positions == setting.index.responses[key]
        assert example.mode == key[1]
    by_row = {}
    for (row, _), example in found.items():
        by_row.setdefault(row, set()).add(example.row_id)
    assert all(len(names) == 1 for names in by_row.values())
    assert len({name for names in by_row.values() for name in names}) == len(by_row)


def test_data_that_cannot_be_trained_on_are_reported():
    with pytest.raises(ArtifactError, match="no training example"):
        ExampleIndex.build([(0, make_table().slice(0, 0))], 64)
    with pytest.raises(TrainingError, match="batch_tokens: 8 is less than"):
        Setting(config(batch_tokens=8))
    # Both modes of a row together are too long only in the second stage: reported before the first one.
    longest = int(Setting().index.tokens.max())
    with pytest.raises(TrainingError, match=rf"batch_tokens: {longest} is less than"):
        Setting(config(batch_tokens=longest))
    only = {0: make_table().filter([m == "training" for m in make_table()["mode"].to_pylist()])}
    with pytest.raises(TrainingError, match="no example in the mode"):
        UpdatePlan(ExampleIndex.build(only.items(), 24), config(), 0)
    setting = Setting()
    setting.shards[1] = setting.shards[1].slice(0, 2)
    with pytest.raises(ArtifactError, match="select shard 1 has changed"):
        dict(setting.reader.read(setting.index, [(row, 0) for row in range(33)]))
