"""The fusion loss against a dense oracle written straight from its definition."""

import pytest
import torch

from profuser.training.losses import fusion_loss

TAILS = ("bucket", "renormalise", "drop")


def make(n=7, d=6, v=19, k=4, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, dtype=dtype, requires_grad=True)
    targets = torch.randint(v, (n,))
    teacher = torch.randn(n, v, dtype=dtype).log_softmax(-1).topk(k)
    ids, logprobs = teacher.indices.clone(), teacher.values.clone()
    ids[1, 2:], logprobs[1, 2:] = 0, -torch.inf  # a short top-k
    ids[2], logprobs[2] = 0, -torch.inf  # no teacher at all
    ce_weight, kl_weight = torch.rand(n, dtype=dtype), torch.rand(n, dtype=dtype)
    return hidden, weight, targets, ids, logprobs, ce_weight, kl_weight


def dense(hidden, weight, targets, ids, logprobs, ce_weight, kl_weight, temperature, tail):
    """The definition, with full logits and autograd."""
    log_q = (hidden @ weight.T).log_softmax(-1)
    total = -(ce_weight * log_q.gather(1, targets[:, None])[:, 0]).sum()
    for n in range(len(hidden)):
        keep = logprobs[n] > -torch.inf
        if not keep.any():
            continue
        p, q = logprobs[n][keep].exp(), log_q[n].exp()[ids[n][keep]]
        if tail == "bucket":
            others = torch.ones(weight.shape[0], dtype=torch.bool)
            others[ids[n][keep]] = False
            p = torch.cat([p, (1 - p.sum())[None]])
            q = torch.cat([q, log_q[n].exp()[others].sum()[None]])
        p, q = p ** (1 / temperature), q ** (1 / temperature)
        if tail != "drop":
            p, q = p / p.sum(), q / q.sum()
        total = total + kl_weight[n] * (p * (p / q).log() - p + q).sum()
    return total


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradients_equal_the_dense_definition(tail, temperature):
    inputs = make()
    expected = dense(*inputs, temperature, tail)
    expected_grads = torch.autograd.grad(expected, inputs[:2])
    got = fusion_loss(*inputs, temperature=temperature, tail=tail, chunk_tokens=3)
    got_grads = torch.autograd.grad(got.total, inputs[:2])
    torch.testing.assert_close(got.total, expected)
    torch.testing.assert_close(got_grads, expected_grads)


@pytest.mark.parametrize("tail", TAILS)
def test_float32_is_within_1e_5_of_float64(tail):
    inputs = make(n=40, d=16, v=300, k=10)
    single = [x.detach().float() if x.is_floating_point() else x for x in inputs]
    for tensor in single[:2]:
        tensor.requires_grad_()
    expected = torch.autograd.grad(fusion_loss(*inputs, tail=tail).total, inputs[:2])
    got = torch.autograd.grad(fusion_loss(*single, tail=tail).total, single[:2])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tail", TAILS)
def test_gradcheck(tail):
    hidden, weight, *rest = make(n=4, d=3, v=9, k=3)
    assert torch.autograd.gradcheck(lambda h, w: fusion_loss(h, w, *rest, tail=tail).total, (hidden, weight))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_and_its_gradient_vanish_where_student_equals_teacher(tail, temperature):
    hidden, weight, targets, *_ = make()
    student = (hidden @ weight.T).log_softmax(-1).detach().topk(5)
    zero, one = torch.zeros(len(hidden), dtype=hidden.dtype), torch.ones(len(hidden), dtype=hidden.dtype)
    loss = fusion_loss(hidden, weight, targets, student.indices, student.values, zero, one, temperature, tail)
    grads = torch.autograd.grad(loss.total, (hidden, weight))
    assert loss.kl_nats.abs().max() < 1e-12
    assert max(g.abs().max() for g in grads) < 1e-12


def test_cutting_into_micro_batches_changes_nothing():
    inputs = make(n=12)
    whole = torch.autograd.grad(fusion_loss(*inputs).total, inputs[:2])
    parts = [
        torch.autograd.grad(
            fusion_loss(inputs[0][a:b], inputs[1], *(x[a:b] for x in inputs[2:]), chunk_tokens=2).total, inputs[:2]
        )
        for a, b in ((0, 5), (5, 12))
    ]
    for i in range(2):
        torch.testing.assert_close(sum(part[i] for part in parts), whole[i])


def test_a_confident_student_under_a_broad_teacher_has_finite_gradients():
    hidden = torch.tensor([[60.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    logprobs = torch.tensor([[0.3, 0.3]]).log()
    one = torch.ones(1)
    loss = fusion_loss(hidden, weight, torch.tensor([0]), torch.tensor([[0, 1]]), logprobs, one, one)
    loss.total.backward()
    assert hidden.grad is not None
    assert torch.isfinite(loss.total)
    assert torch.isfinite(hidden.grad).all()
