"""Rounds of training: together they are one training, whose examples may change in between."""

import pytest

from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig, round_end
from profuser.training.batches import UpdatePlan
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.loop import HELDOUT
from profuser.training.reference import Reference
from tests.training.made import Setting, config, curve, tables

SCHEDULE = [
    {"until": 0.5, "inference": 1, "training": 0, "preference": 0.5},
    {"until": 1.0, "inference": 0, "training": 0.5, "on_policy": 1, "preference": 0.5},
]


def setting(shards, number=None, num_steps=None, **settings):
    made = Setting(config(**{"schedule": SCHEDULE, **settings}), shards)
    made.plan = UpdatePlan(made.index, made.config, made.seed, number, num_steps)
    return made


def rounds(folder, shards, **settings):
    """Runs two rounds, each with its own shards, as the stage does; returns the last trainer."""
    first = setting(shards[0], 1, rounds=2, **settings)
    before = first.trainer()
    assert first.run(before)
    Checkpointer().save(before, folder)()
    second = setting(shards[1], 2, first.plan.num_steps, rounds=2, **settings)
    trainer = second.trainer()
    load_checkpoint(trainer, folder)
    trainer.reference = Reference()
    assert second.run(trainer)
    return trainer


def losses(trainer):
    return [{k: v for k, v in record.items() if not k.startswith(HELDOUT)} for record in curve(trainer)]


def test_rounds_whose_examples_do_not_change_are_one_training(tmp_path):
    shards = tables(pairs=True, on_policy=True)
    simpo = {"preference": {"kind": "simpo"}, "duration": {"kind": "epochs", "value": 2}}
    whole = setting(shards, **simpo)
    undisturbed = whole.trainer()
    whole.run(undisturbed)
    trainer = rounds(tmp_path / "end", [shards, shards], **simpo)
    assert len(trainer.history) == whole.plan.num_steps
    # Held-out rows are also scored where a round ends.
    assert losses(trainer) == losses(undisturbed)
    for mine, other in zip(trainer.module.parameters(), undisturbed.module.parameters(), strict=True):
        assert mine.equal(other)


def test_a_later_round_keeps_the_length_of_the_training_and_measures_its_own_reference(tmp_path):
    shards = [tables(pairs=True, on_policy=True), tables(num_rows=14, pairs=True, on_policy=True)]
    # The second round begins within a piece.
    whole = [{"until": 1.0, "inference": 1, "training": 0, "preference": 0.5, "on_policy": 0.5}]
    epochs = {"duration": {"kind": "epochs", "value": 2}, "schedule": whole}
    first, second = (setting(each, **epochs).plan.num_steps for each in shards)
    assert first < second
    trainer = rounds(tmp_path / "end", shards, **epochs)
    steps = [record["step"] for record in trainer.history]
    assert steps == list(range(first))
    begins = round_end(setting(shards[0], rounds=2, **epochs).config, first, 1)
    before, after = (
        [record["preference_lead"] for record in part if "preference_lead" in record]
        for part in (trainer.history[:begins], trainer.history[begins:])
    )
    assert abs(after[0]) < 0.1 < before[-1]


def test_rounds_without_updates_or_without_answers_to_renew_are_refused():
    made = Setting(
        config(schedule=SCHEDULE, duration={"kind": "epochs", "value": 0.1}), tables(pairs=True, on_policy=True)
    )
    made.config = made.config.model_copy(update={"rounds": made.plan.num_steps + 1})
    with pytest.raises(TrainingError, match=r"fuse.rounds: \d+ rounds, but only \d+ updates"):
        UpdatePlan(made.index, made.config, 0)
    with pytest.raises(ValueError, match="leave one without any"):
        FuseConfig.model_validate({"schedule": SCHEDULE, "rounds": 3, "duration": {"kind": "steps", "value": 2}})
    with pytest.raises(ValueError, match="renews the target's answers for on_policy"):
        FuseConfig.model_validate({"rounds": 2})
    early = [
        {"until": 0.3, "inference": 0, "training": 0, "on_policy": 1},
        {"until": 1.0, "inference": 0, "training": 1},
    ]
    with pytest.raises(ValueError, match="does not train after the first"):
        FuseConfig.model_validate({"schedule": early, "rounds": 2})
    assert FuseConfig.model_validate({"schedule": early, "rounds": 4}).num_rounds == 2
