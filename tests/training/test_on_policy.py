"""On-policy mode: the divergence alone is learnt, as a dense reference computes it, and the target comes nearer to the teacher."""

import pytest
import torch

from profuser.recipe.fusing import FuseConfig
from profuser.recipe.schedule import ModeWeights
from profuser.training.batches import read_packs
from profuser.training.step import FusionModule
from tests.training.made import Setting, config, curve, model, tables

ONLY = [{"until": 1.0, "inference": 0, "training": 0, "on_policy": 1}]
MIXED = [{"until": 1.0, "inference": 0.3, "training": 1, "on_policy": 0.7, "preference": 0.5}]


def reverse_kl(target, example):
    """Returns the reverse KL of each response token over the top-k and a category for all others, by dense logits."""
    ids = torch.tensor([[*example.prompt_ids.tolist(), *example.response_ids.tolist()]])
    q = target(ids).logits[0, len(example.prompt_ids) - 1 : -1].softmax(-1)
    kept = torch.tensor(example.topk.ids.astype("int64"))
    top_p = torch.tensor(example.topk.logprobs).double().exp()
    top_q = q.gather(1, kept)
    p = torch.cat([top_p, (1 - top_p.sum(-1, keepdim=True)).clamp_min(1e-5)], -1)
    p = p / p.sum(-1, keepdim=True)
    q = torch.cat([top_q, 1 - top_q.sum(-1, keepdim=True)], -1)
    return (q * (q.log() - p.log())).sum(-1)


def test_loss_and_gradient_are_the_divergence_alone_on_the_targets_own_answers():
    made = Setting(config(schedule=ONLY, beta=0.5), tables(on_policy=True))
    target = model().double()
    update = made.plan.update(0, 0, ModeWeights(0, 0, 0, 1))
    assert {part for _, part in update.keys} == {4}
    examples = dict(made.reader.read(made.index, update.keys))
    wanted = torch.cat([reverse_kl(target, examples[key]) for key in update.keys]).mean()
    wanted.backward()
    grads = [parameter.grad.clone() for parameter in target.parameters()]
    target.zero_grad()
    module = FusionModule(target, made.config)
    scale = torch.full((5,), 1 / update.denominators[4], dtype=torch.float64)
    batches = list(read_packs(made.index, made.reader, made.plan.deal(update, 1, 0), 0))
    losses = [module(batch.tensors(module.device), scale).total for batch in batches]
    sum(losses).backward()
    assert float(sum(losses)) == pytest.approx(wanted.item(), rel=1e-4)
    for parameter, grad in zip(target.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-7)


def test_every_mode_adds_its_own_gradient():
    made = Setting(config(schedule=MIXED, preference={"kind": "simpo"}), tables(pairs=True, on_policy=True))
    update = made.plan.update(0, 0, ModeWeights(0.3, 1, 0.5, 0.7))
    found = []
    for weights in ([1, 0.3, 0.5, 0.5, 0.7], [1, 0.3, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 0.7]):
        module = FusionModule(model(), made.config)
        for batch in read_packs(made.index, made.reader, made.plan.deal(update, 1, 0), 0):
            module(batch.tensors(module.device), torch.tensor(weights)).total.backward()
        found.append([parameter.grad for parameter in module.parameters()])
    for whole, *parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-6)


def test_the_target_comes_nearer_to_the_teacher_on_its_own_answers():
    made = Setting(config(schedule=ONLY, duration={"kind": "steps", "value": 40}), tables(on_policy=True))
    trainer = made.trainer()
    made.run(trainer)
    first, last = trainer.history[0], trainer.history[-1]
    assert last["kl_on_policy_nats"] < 0.5 * first["kl_on_policy_nats"]
    assert last["weight_on_policy"] == 1
    assert "ce_training_nats" not in last


def test_all_four_modes_are_micro_batched_alike():
    found = []
    for tokens in (24, 1000):
        made = Setting(config(schedule=MIXED, micro_batch_tokens=tokens), tables(pairs=True, on_policy=True))
        trainer = made.trainer()
        made.run(trainer)
        found.append([{k: v for k, v in each.items() if k != "preference_accuracy"} for each in curve(trainer)])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_positions_are_not_left_out_where_the_target_is_ahead():
    with pytest.raises(ValueError, match="kl_positions: ahead leaves out what the target says"):
        FuseConfig.model_validate({"schedule": ONLY, "kl_positions": "ahead"})
