"""Packed examples give the same results as each one separately, for every architecture in use."""

import numpy as np
import pytest
import torch

from profuser.errors import ArtifactError, UserError
from profuser.recipe.schedule import ModeWeights
from profuser.training.batches import read_packs
from profuser.training.checks import check_packing, check_target, check_vocabulary
from profuser.training.step import FusionModule, PackedExamples, collate
from tests.training.made import CONFIGS, K, Setting, config, model

SCALE = torch.tensor([0.05, 0.02])


@pytest.fixture(scope="module")
def examples():
    setting = Setting()
    update = setting.plan.update(0, 0, ModeWeights(inference=0.1, training=1.0))
    assert len(update.keys) > 6
    return [example for _, example in setting.reader.read(setting.index, update.keys)]


def gradients(module, batches):
    module.zero_grad()
    total, ce = 0.0, []
    for packs in batches:
        losses = module(collate(packs, 0, K).tensors(torch.device("cpu")), SCALE)
        losses.total.backward()
        total += float(losses.total.detach())
        ce.append(losses.ce_nats)
    return total, torch.cat(ce), {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_packed_examples_give_the_losses_and_gradients_of_each_one_alone(name, attention, examples):
    target = model(name)
    if attention == "sdpa" and not target._supports_sdpa:
        attention = "eager"
    module = FusionModule(target, config(attention=attention))
    packs = [examples[:4], examples[4:5], examples[5:]]
    together, alone = gradients(module, [packs]), gradients(module, [[[e]] for e in examples])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    torch.testing.assert_close(together[1], alone[1], rtol=1e-5, atol=1e-5)
    for key, grad in alone[2].items():
        torch.testing.assert_close(together[2][key], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["auto", "varlen", "flex_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_examples_on_a_gpu_give_the_gradients_of_each_one_alone(name, attention, dtype, examples):
    device, target = torch.device("cuda"), model(name).to(dtype)
    try:
        module = FusionModule(target.to(device), config(attention=attention))
    except UserError:
        pytest.skip("the target does not support it")

    def found(batches):
        module.zero_grad()
        for packs in batches:
            module(collate(packs, 0, K).tensors(device), SCALE.to(device)).total.backward()
        return torch.cat([p.grad.float().reshape(-1) for p in module.parameters()])

    together, alone = found([[examples[:4], examples[4:]]]), found([[[e]] for e in examples])
    assert float((together - alone).norm() / alone.norm()) < (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cross_entropy_equals_the_models_own(name, examples):
    """The oracle is the model's own loss: response tokens only, each predicted from the token before it."""
    target = model(name).eval()
    losses = FusionModule(target, config())(collate([examples], 0, K).tensors(torch.device("cpu")), SCALE)
    found = np.split(losses.ce_nats.numpy(), np.cumsum([len(e.response_ids) for e in examples])[:-1])
    for example, nats in zip(examples, found, strict=True):
        ids = torch.from_numpy(np.concatenate([example.prompt_ids, example.response_ids]).astype(np.int64))[None]
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        assert float(target(ids, labels=labels).loss.detach()) == pytest.approx(nats.mean(), rel=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_in_use_pass_the_packing_check(name):
    check_target(FusionModule(model(name), config()), name, packing=True)


def test_a_target_whose_vocabulary_differs_from_the_examples_is_rejected():
    check_vocabulary(model(), 50, "some/model")
    with pytest.raises(ArtifactError, match=r"some/model has 50 logits, but the selected examples are for 60"):
        check_vocabulary(model(), 60, "some/model")


def test_a_target_that_mixes_packed_examples_is_rejected():
    target = model("llama")
    inner = target.model.forward
    # Like an architecture that counts positions internally and supports no mask.
    target.model.forward = lambda input_ids, position_ids=None, use_cache=None, **_: inner(input_ids=input_ids)
    with pytest.raises(UserError, match=r"cannot keep packed examples separate .* set fuse.packing: false"):
        check_packing(FusionModule(target, config()), "some/model")


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_unpacked_examples_need_no_mask(name, examples):
    packed, padded = FusionModule(model(name), config()), FusionModule(model(name), config(packing=False))
    for a, b in zip(
        gradients(packed, [[[e] for e in examples]]), gradients(padded, [[[e] for e in examples]]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_empty_micro_batch_gives_zero():
    losses = FusionModule(model(), config())(collate([], 0, K).tensors(torch.device("cpu")), SCALE)
    losses.total.backward()
    assert losses.total == 0


def test_a_micro_batch_survives_conversion_to_a_table(examples):
    for packs in ([examples[:3], examples[3:5]], [], [examples[:1]]):
        before = collate(packs, 0, K)
        after = PackedExamples.from_table(before.to_table(), 0, K)
        for name in before.__dataclass_fields__:
            a, b = getattr(before, name), getattr(after, name)
            assert np.array_equal(a, b)
            assert not isinstance(a, np.ndarray) or (a.dtype, a.shape) == (b.dtype, b.shape)


def test_packing_wastes_little():
    setting = Setting(config(batch_tokens=400, validation_rows=0))
    update = setting.plan.update(0, 0, ModeWeights(inference=1, training=1))
    batches = list(read_packs(setting.index, setting.reader, setting.plan.deal(update, 1, 0), 0))
    assert update.sequence_tokens > 0.85 * sum(batch.input_ids.size for batch in batches)
