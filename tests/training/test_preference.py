"""Preference mode: the loss and its gradient equal a dense reference, pairs stay together, and a resumed run changes no bit."""

import math

import pytest
import torch

from profuser.artifacts.schemas import PARTS
from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig
from profuser.training.batches import read_packs
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.examples import ExampleIndex
from profuser.training.loop import Hooks
from profuser.training.step import FusionModule
from profuser.training.target import prepare
from tests.training.made import Setting, config, curve, model, tables

MIXED = [
    {"until": 0.5, "inference": 1.0, "training": 0.0},
    {"until": 1.0, "inference": 0.2, "training": 1, "preference": 0.5},
]
"""A schedule whose pairs begin in the middle of the run."""
ONLY = [{"until": 1.0, "inference": 0, "training": 0, "preference": 1}]
LOSSES = {
    "dpo": {},
    "dpo over whole answers": {"length_normalised": False, "beta": 0.1},
    "simpo": {"kind": "simpo", "margin": 0.4},
}


def setting(schedule=None, **settings):
    return Setting(config(schedule=schedule or MIXED, **settings), tables(pairs=True))


def log_likelihoods(target, examples):
    """Returns each response's log-probability under a target, one example after another, by dense logits."""
    found = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids.tolist(), *example.response_ids.tolist()]])
        logits = target(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(logits.gather(1, ids[0, len(example.prompt_ids) :, None]).sum())
    return found


def dense(made, target, update, reference, loss):
    """Returns the mean loss of the update's pairs, as the papers write it."""
    keys = [key for key in update.keys if PARTS[key[1]] == "preferred"]
    both = [dict(made.reader.read(made.index, [(row, 2), (row, 3)])) for row, _ in keys]
    losses = []
    for pair in both:
        better, worse = (pair[key] for key in sorted(pair))
        now = log_likelihoods(target, (better, worse))
        before = log_likelihoods(reference, (better, worse)) if loss.kind == "dpo" else (0.0, 0.0)
        sizes = [len(e.response_ids) if loss.length_normalised else 1 for e in (better, worse)]
        first, second = (loss.scale * (a - b) / size for a, b, size in zip(now, before, sizes, strict=True))
        losses.append(-torch.nn.functional.logsigmoid(first - second - loss.margin))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradient_equal_the_papers_formulas(loss):
    made = setting(ONLY, preference=loss)
    torch.manual_seed(1)
    reference = model().double()
    target = model().double()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    trainer = made.trainer(module=FusionModule(target, made.config))
    update = made.plan.update(0, 0, trainer.schedule.weights(0))
    wanted = dense(made, target, update, reference, made.config.preference)
    wanted.backward()
    grads = [parameter.grad.clone() for parameter in target.parameters()]
    target.zero_grad()
    if made.config.preference.kind == "dpo":
        first = made.trainer(module=FusionModule(reference, made.config))
        first.reference.measure(first, made.stream())
        trainer.reference = first.reference
    total, pairs = 0.0, 0
    for batch in read_packs(made.index, made.reader, made.plan.deal(update, 1, 0), 0):
        losses = trainer.module(
            batch.tensors(trainer.device, trainer.reference.of(batch)),
            torch.full((5,), 1 / update.denominators[2], dtype=torch.float64),
        )
        losses.total.backward()
        total, pairs = total + losses.total.item(), pairs + batch.num_pairs
    assert pairs == update.denominators[2] > 2
    assert total == pytest.approx(wanted.item(), rel=1e-6)
    for parameter, grad in zip(target.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-8)


def test_pairs_and_examples_of_the_other_modes_do_not_touch_each_other():
    schedule = [{"until": 1.0, "inference": 0.2, "training": 1.0, "preference": 0.5}]
    made = setting(schedule, preference={"kind": "simpo"}, divergence={"inference": "jsd", "training": "forward_kl"})
    found = []
    for weights in ([1.0, 0.2, 0.5, 0.5], [1.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]):
        module = FusionModule(prepare(model(), made.config), made.config)
        update = made.plan.update(0, 0, made.trainer().schedule.weights(0))
        for batch in read_packs(made.index, made.reader, made.plan.deal(update, 1, 0), 0):
            module(batch.tensors(module.device), torch.tensor(weights)).total.backward()
        found.append([parameter.grad for parameter in module.parameters()])
    for whole, modes, pairs in zip(*found, strict=True):
        torch.testing.assert_close(whole, modes + pairs, rtol=1e-4, atol=1e-6)


def test_the_answers_of_a_pair_are_in_one_pack_and_a_long_pair_is_left_out_and_counted():
    made = setting([{"until": 1.0, "inference": 1, "training": 1, "preference": 1}])
    update = made.plan.update(0, 0, made.trainer().schedule.weights(0))
    halves = [key for key in update.keys if key[1] >= 2]
    assert len(halves) == 2 * update.denominators[2] == 2 * update.denominators[3] > 2
    for world_size in (1, 2, 3):
        packs = [p for rank in range(world_size) for batch in made.plan.deal(update, world_size, rank) for p in batch]
        assert sorted(key for each in packs for key in each) == sorted(update.keys)
        for each in packs:
            assert [row for row, part in each if part == 2] == [row for row, part in each if part == 3]
    short = ExampleIndex.build(made.shards.items(), 14)
    assert short.num_long_pairs > 0
    assert f"{short.num_long_pairs} pairs left out, whose answers are too long together" in short.cut_words(14)
    assert made.index.cut_words(24) == ""
    assert (short.tokens[:, 2:].sum(1) <= 14).all()
    assert int((short.tokens[:, 2] > 0).sum()) + short.num_long_pairs == int((made.index.tokens[:, 2] > 0).sum())


def test_micro_batches_change_no_metric():
    found = []
    for tokens in (24, 1000):
        made = setting(micro_batch_tokens=tokens)
        trainer = made.trainer()
        made.run(trainer)
        found.append([{k: v for k, v in each.items() if k != "preference_accuracy"} for each in curve(trainer)])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_a_piece_begins_with_its_target_as_the_reference_and_learns_the_order():
    made = setting(
        [{"until": 0.5, "inference": 1, "training": 0}, {"until": 1, "inference": 0, "training": 0, "preference": 1}],
        duration={"kind": "steps", "value": 40},
    )
    trainer = made.trainer()
    made.run(trainer)
    first, *rest = (record for record in trainer.history if "pairs" in record)
    # Of the reference itself, no answer is more likely than of the reference.
    assert first["step"] == 20
    assert first["preference_nats"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["preference_lead"] == pytest.approx(0, abs=1e-5)
    assert rest[-1]["preference_nats"] < 0.3
    assert rest[-1]["preference_accuracy"] > 0.9
    assert rest[-1]["ce_rejected_nats"] > rest[-1]["ce_preferred_nats"]
    assert all("kl_preferred_nats" not in record for record in trainer.history)


def test_a_run_stopped_within_a_piece_of_pairs_goes_on_to_the_same_bits(tmp_path):
    made = setting(duration={"kind": "steps", "value": 8}, checkpoint_every_steps=3)
    whole = made.trainer()
    made.run(whole)
    for stop in (3, 6):
        stopped, checkpointer = made.trainer(), Checkpointer()

        def save(trainer, checkpointer=checkpointer, stop=stop):
            if trainer.step == stop:
                checkpointer.save(trainer, tmp_path / str(stop))()

        trainer = stopped
        made.stream()
        trainer.run(
            made.stream(),
            Hooks(on_checkpoint=save, wants_stop=lambda trainer=trainer, stop=stop: trainer.step == stop - 1),
        )
        resumed = made.trainer()
        load_checkpoint(resumed, tmp_path / str(stop))
        assert resumed.step == stop
        assert (resumed.reference.piece == 1) == (stop == 6)
        assert made.run(resumed)
        assert curve(resumed) == curve(whole)
        assert resumed.reference.nats == whole.reference.nats
        for a, b in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_schedule_of_pairs_without_any_is_refused():
    with pytest.raises(TrainingError, match="no example in the mode that the schedule trains \\(preference\\)"):
        Setting(config(schedule=ONLY))
    with pytest.raises(ValueError, match="preference needs packing"):
        FuseConfig.model_validate({"schedule": ONLY, "packing": False})
