"""Forward and backward of CE and KL over a vocabulary of 32,000: full logits and autograd against chunks in one pass."""

import torch

from profuser.training.losses import fusion_loss
from tests.benchmarks.timing import Result, by_turns

N, D, V, K = 2048, 256, 32_000, 10


def dense(hidden, weight, targets, ids, logprobs, beta):
    """Full logits, the tail as one more category."""
    log_q = (hidden @ weight.T).log_softmax(-1)
    ce = -log_q.gather(1, targets[:, None])[:, 0]
    q, p = log_q.gather(1, ids), logprobs.exp()
    rest_p, rest_q = 1 - p.sum(1), torch.log1p(-q.exp().sum(1).clamp(max=1 - 1e-6))
    kl = (p * (logprobs - q)).sum(1) + rest_p * (rest_p.log() - rest_q)
    return (ce + beta * kl).mean()


def run():
    torch.manual_seed(0)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(V, D) / D**0.5)
    targets = torch.randint(V, (N,))
    teacher = torch.randn(N, V).mul(2).log_softmax(-1).topk(K)
    ids, logprobs = teacher.indices, teacher.values
    share = torch.full((N,), 1 / N)

    def full():
        dense(hidden, weight, targets, ids, logprobs, 0.11).backward()

    def chunks():
        fusion_loss(hidden, weight, targets, ids, logprobs, share, 0.11 * share, chunk_tokens=256).total.backward()

    seconds = by_turns({"full logits, autograd": full, "chunks of 256 tokens, one pass": chunks}, rounds=3)
    # Of logits and of what autograd keeps of their size; the gradient of the output weight is the same for both.
    memory = [f"{3 * N * V * 4 / 2**20:,.0f} MiB of logits", f"{256 * V * 4 / 2**20:,.0f} MiB of logits"]
    named = zip(seconds.items(), memory, strict=True)
    return [Result(name, value, f"{N / value:,.0f}/s", size) for (name, value), size in named]
