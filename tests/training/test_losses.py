"""The fusion loss, compared with a dense oracle written directly from its definition."""

import subprocess
import sys

import pytest
import torch

from profuser.models.output_head import OutputHead
from profuser.training.divergences import Divergence
from profuser.training.losses import IGNORE, fusion_loss

TAILS = ("bucket", "renormalise", "drop")


HEADS = {
    "plain": {},
    "bias": {},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 1.5},
    "all": {"scale": 3.0, "softcap": 2.0},
}


def make(n=7, d=6, v=19, k=4, dtype=torch.float64, seed=0):
    """Returns arguments of `fusion_loss`, with a bare output weight in place of the head."""
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


def head_of(kind, weight):
    bias = torch.linspace(-1, 1, len(weight), dtype=weight.dtype).requires_grad_() if kind in ("bias", "all") else None
    return OutputHead(weight, bias, **HEADS[kind])


def loss_of(hidden, weight, *rest, **options):
    return fusion_loss(hidden, OutputHead(weight), *rest, **options)


DIVERGENCES = [
    Divergence(),
    Divergence("reverse_kl"),
    Divergence("jsd", 0.5),
    Divergence("jsd", 0.1),
    Divergence("skew", 0.1),
]


def defined(divergence, p, q):
    """A divergence of two vectors of masses, which need not sum to 1."""
    mixed = divergence.alpha * p + (1 - divergence.alpha) * q
    kl = lambda a, b: (a * (a / b).log() - a + b).sum()  # noqa: E731
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "skew": lambda: kl(p, mixed),
        "jsd": lambda: divergence.alpha * kl(p, mixed) + (1 - divergence.alpha) * kl(q, mixed),
    }[divergence.kind]()


def dense(
    hidden,
    head,
    targets,
    ids,
    logprobs,
    ce_weight,
    kl_weight,
    temperature,
    tail,
    ahead_only=False,
    divergences=(Divergence(),),
    kinds=None,
):
    """The definition, with full logits and autograd."""
    log_q = head.logits(hidden).log_softmax(-1)
    weight = head.weight
    total = -(ce_weight * log_q.gather(1, targets[:, None])[:, 0]).sum()
    for n in range(len(hidden)):
        keep = logprobs[n] > -torch.inf
        if not keep.any():
            continue
        if ahead_only:
            teacher = dict(zip(ids[n][keep].tolist(), logprobs[n][keep].exp().tolist(), strict=True))
            own = teacher.get(int(targets[n]), 1 - sum(teacher.values()))
            if own <= log_q[n, targets[n]].exp():
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
        total = total + kl_weight[n] * defined(divergences[0 if kinds is None else int(kinds[n])], p, q)
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("divergence", [*DIVERGENCES, None], ids=str)
def test_divergences_and_their_gradients_equal_the_dense_definition(divergence, tail, temperature):
    hidden, weight, *rest = make(n=11)
    leaves, head = [hidden, weight], OutputHead(weight)
    kinds = torch.arange(11) % len(DIVERGENCES) if divergence is None else None
    divergences = DIVERGENCES if divergence is None else [divergence]
    expected = dense(hidden, head, *rest, temperature, tail, divergences=divergences, kinds=kinds)
    options = {"divergences": divergences, "kinds": kinds, "chunk_tokens": 3}
    got = fusion_loss(hidden, head, *rest, temperature, tail, **options)
    torch.testing.assert_close(got.total, expected)
    for a, b in zip(*(torch.autograd.grad(each, leaves) for each in (got.total, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_gradcheck_of_divergences(divergence, tail):
    hidden, weight, *rest = make(n=4, d=3, v=9, k=3)

    def total(hidden, weight):
        return loss_of(hidden, weight, *rest, tail=tail, chunk_tokens=3, divergences=[divergence]).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_merging_the_tail_never_raises_a_divergence(divergence):
    torch.manual_seed(1)
    p, q = torch.randn(2, 50, 40, dtype=torch.float64).mul(2).log_softmax(-1)
    whole = torch.stack([defined(divergence, a.exp(), b.exp()) for a, b in zip(p, q, strict=True)])
    top = p.topk(5)
    log_q = q.gather(-1, top.indices)
    merged = divergence(top.values, log_q, 1 - log_q.exp().sum(-1), 1.0, "bucket")[0]
    assert (merged <= whole + 1e-9).all()
    assert (merged > 0).all()


def test_a_teacher_without_a_tail_has_a_finite_reverse_kl():
    logprobs = torch.tensor([[0.0, -torch.inf]])
    log_q = torch.tensor([[0.5, 0.25]]).log()
    value, top, tail = Divergence("reverse_kl")(logprobs[:, :1], log_q[:, :1], torch.tensor([0.5]), 1.0, "bucket")
    assert value.isfinite().all()
    assert top.isfinite().all()
    assert tail > 0


@pytest.mark.parametrize("ahead_only", [False, True])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", HEADS)
def test_value_and_gradients_equal_the_dense_definition(tail, temperature, kind, ahead_only):
    hidden, weight, targets, ids, *rest = make()
    targets[[0, 5]] = ids[[0, 5], [0, 2]]  # in the teacher's top-k; the others are outside it, or chance to be in it
    rest = targets, ids, *rest
    head = head_of(kind, weight)
    leaves = [hidden, weight] if head.bias is None else [hidden, weight, head.bias]
    expected = dense(hidden, head, *rest, temperature, tail, ahead_only)
    expected_grads = torch.autograd.grad(expected, leaves)
    options = {"temperature": temperature, "tail": tail, "ahead_only": ahead_only}
    got = fusion_loss(hidden, head, *rest, **options, chunk_tokens=3)
    got_grads = torch.autograd.grad(got.total, leaves)
    torch.testing.assert_close(got.total, expected)
    torch.testing.assert_close(got_grads, expected_grads)


@pytest.mark.parametrize("tail", TAILS)
def test_float32_is_within_1e_5_of_float64(tail):
    inputs = make(n=40, d=16, v=300, k=10)
    single = [x.detach().float() if x.is_floating_point() else x for x in inputs]
    for tensor in single[:2]:
        tensor.requires_grad_()
    expected = torch.autograd.grad(loss_of(*inputs, tail=tail).total, inputs[:2])
    got = torch.autograd.grad(loss_of(*single, tail=tail).total, single[:2])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", HEADS)
def test_gradcheck(tail, kind):
    hidden, weight, *rest = make(n=4, d=3, v=9, k=3)
    head = head_of(kind, weight)

    def total(hidden, weight):
        return fusion_loss(hidden, head._replace(weight=weight), *rest, tail=tail, chunk_tokens=3).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_and_gradient_vanish_where_student_equals_teacher(tail, temperature, divergence):
    hidden, weight, targets, *_ = make()
    student = (hidden @ weight.T).log_softmax(-1).detach().topk(5)
    zero, one = torch.zeros(len(hidden), dtype=hidden.dtype), torch.ones(len(hidden), dtype=hidden.dtype)
    given = student.indices, student.values, zero, one, temperature, tail
    loss = loss_of(hidden, weight, targets, *given, divergences=[divergence])
    grads = torch.autograd.grad(loss.total, (hidden, weight))
    assert loss.kl_nats.abs().max() < 1e-12
    assert max(g.abs().max() for g in grads) < 1e-12


def test_splitting_into_micro_batches_changes_nothing():
    inputs = make(n=12)
    whole = torch.autograd.grad(loss_of(*inputs).total, inputs[:2])
    parts = [
        torch.autograd.grad(
            loss_of(inputs[0][a:b], inputs[1], *(x[a:b] for x in inputs[2:]), chunk_tokens=2).total, inputs[:2]
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
    loss = loss_of(hidden, weight, torch.tensor([0]), torch.tensor([[0, 1]]), logprobs, one, one)
    loss.total.backward()
    assert hidden.grad is not None
    assert torch.isfinite(loss.total)
    assert torch.isfinite(hidden.grad).all()


def test_ignored_tokens_have_no_effect():
    hidden, weight, targets, *rest = make(n=6)
    masked = targets.clone()
    masked[[0, 4]] = IGNORE
    kept = [1, 2, 3, 5]  # of which 2 has no teacher
    got = loss_of(hidden, weight, masked, *rest)
    expected = loss_of(hidden[kept], weight, targets[kept], *(tensor[kept] for tensor in rest))
    torch.testing.assert_close(got.total, expected.total)
    torch.testing.assert_close(got.ce_nats[kept], expected.ce_nats)
    assert (got.ce_nats[[0, 4]] == 0).all()
    assert (got.kl_nats[[0, 4]] == 0).all()
    assert (int(got.num_tokens), int(got.num_taught)) == (4, 3) == (int(expected.num_tokens), int(expected.num_taught))
    for a, b in zip(*(torch.autograd.grad(loss.total, (hidden, weight)) for loss in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_sums_over_counts_are_means_however_the_batch_is_split():
    hidden, weight, *rest = make(n=9)
    ones = torch.ones(9, dtype=hidden.dtype)
    whole = loss_of(hidden, weight, *rest[:3], ones, ones)
    parts = [
        loss_of(hidden[a:b], weight, *(x[a:b] for x in rest[:3]), ones[a:b], ones[a:b]) for a, b in ((0, 2), (2, 9))
    ]
    assert sum(int(part.num_taught) for part in parts) == int(whole.num_taught) == 8
    mean = sum(part.ce_nats.sum() for part in parts) / sum(part.num_tokens for part in parts)
    torch.testing.assert_close(mean, torch.nn.functional.cross_entropy(hidden @ weight.T, rest[0]))


class WidestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the most rows of vocabulary width in any tensor of a computation."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and self.vocab_size in tensor.shape:
                self.rows = max(self.rows, tensor.numel() // self.vocab_size)
        return out


@pytest.mark.parametrize("kind", HEADS)
def test_no_tensor_of_logits_is_larger_than_a_chunk(kind):
    hidden, weight, *rest = make(n=64, d=5, v=97)
    with WidestTensor(97) as widest:
        fusion_loss(hidden, head_of(kind, weight), *rest, chunk_tokens=8).total.backward()
    assert widest.rows == 8


def test_a_frozen_head_gets_no_gradient_and_hidden_states_get_the_same():
    hidden, weight, *rest = make()
    frozen = torch.autograd.grad(loss_of(hidden, weight.detach(), *rest).total, hidden)
    torch.testing.assert_close(frozen, torch.autograd.grad(loss_of(hidden, weight, *rest).total, (hidden, weight))[:1])
    with torch.no_grad():
        torch.testing.assert_close(loss_of(hidden, weight, *rest).total, loss_of(hidden, weight, *rest).total)


def test_bfloat16_autocast_is_close_to_float32_and_gives_float32_gradients():
    inputs = [x.detach().float() if x.is_floating_point() else x for x in make(n=64, d=16, v=200, k=8)]
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    exact = loss_of(*inputs)
    expected = torch.autograd.grad(exact.total, inputs[:2])
    with torch.autocast("cpu", torch.bfloat16):
        low = loss_of(*inputs, chunk_tokens=16)
    assert low.total.dtype == torch.float32
    assert float(low.total.detach()) == pytest.approx(float(exact.total.detach()), rel=2e-2)
    for got, wanted in zip(torch.autograd.grad(low.total, inputs[:2]), expected, strict=True):
        assert got.dtype == torch.float32
        assert float((got - wanted).norm() / wanted.norm()) < 2e-2


COMPILED = """
import torch
from tests.training.test_losses import loss_of, make
inputs = [x.detach().float() if x.is_floating_point() else x for x in make(n=24, d=16, v=200, k=8)]
for tensor in inputs[:2]:
    tensor.requires_grad_()
eager, compiled = loss_of(*inputs, chunk_tokens=8), torch.compile(loss_of)(*inputs, chunk_tokens=8)
torch.testing.assert_close(compiled.kl_nats, eager.kl_nats)
for a, b in zip(*(torch.autograd.grad(loss.total, inputs[:2]) for loss in (compiled, eager)), strict=True):
    torch.testing.assert_close(a, b)
print("the same")
"""


@pytest.mark.slow
def test_torch_compile_changes_nothing():
    # In a separate process: the compiler cannot trace the type checks that tests add to every function.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr
