"""The fusion loss at 8,192 tokens, hidden size 512, vocabulary 32,000, float32: forward and backward."""

import torch

from profuser.models.output_head import OutputHead
from profuser.training.losses import fusion_loss
from tests.benchmarks.measure import Row, by_turns, peak_bytes

N, D, V, K = 8192, 512, 32_000, 10
BETA, CHUNK = 0.11, 512


def dense(hidden, weight, targets, ids, logprobs, share):
    """Computes the published loss: targets of the size of the logits, two losses with a weight per token, autograd through both."""
    teacher = torch.zeros(N, V).scatter_(1, ids, logprobs.exp())
    logits = hidden @ weight.T
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="none").sum(-1)
    return (share * (ce + BETA * kl)).sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy alone, in chunks, with the gradient in the forward pass: the minimum cost of any fusion."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        grad_hidden, grad_weight, total = torch.empty_like(hidden), torch.zeros_like(weight), 0.0
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            goal = targets[part, None]
            logits = hidden[part] @ weight.T
            torch.log_softmax(logits, -1, out=logits)
            total = total - logits.gather(1, goal).sum() / N
            grad = logits.exp_().div_(N)
            grad.scatter_add_(1, goal, torch.full_like(goal, -1 / N, dtype=grad.dtype))
            grad_hidden[part] = grad @ weight
            grad_weight.addmm_(grad.T, hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, *grads):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None


def run() -> list[Row]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(V, D) / D**0.5)
    targets, ids = torch.randint(V, (N,)), torch.rand(N, V).topk(K).indices
    logprobs = torch.randn(N, K).sub(0.5).log_softmax(-1).sort(descending=True).values - 0.1
    share = torch.full((N,), 1 / N)

    def ours():
        head = OutputHead(weight)
        return fusion_loss(hidden, head, targets, ids, logprobs, share, BETA * share, chunk_tokens=CHUNK).total

    def products():
        with torch.no_grad():
            for start in range(0, N, CHUNK):
                part = hidden[start : start + CHUNK]
                logits = part @ weight.T
                _ = logits @ weight, logits.T @ part

    losses = {
        "ours": ours,
        "cross-entropy": lambda: ChunkedCrossEntropy.apply(hidden, weight, targets),
        "dense": lambda: dense(hidden, weight, targets, ids, logprobs, share),
    }
    ways = {name: lambda f=loss: _forward_and_backward(f, hidden, weight) for name, loss in losses.items()}
    gradients = 4 * (hidden.numel() + weight.numel())
    memory = {name: peak_bytes(ways[name]) - gradients for name in ("ours", "dense")}
    seconds = by_turns(ways | {"products": products}, rounds=5)
    return [
        Row(
            "loss, peak memory above inputs and gradients, against dense",
            memory["ours"] / 2**20,
            "MiB",
            memory["dense"] / 2**20,
            "<= 0.10 x",
        ),
        Row("loss, time, against chunked cross-entropy", seconds["ours"], "s", seconds["cross-entropy"], "<= 1.10 x"),
        Row("loss, time, against dense", seconds["ours"], "s", seconds["dense"], "<= 0.55 x"),
        Row("loss, time, against its three matrix products", seconds["ours"], "s", seconds["products"]),
    ]


def _forward_and_backward(loss, hidden, weight):
    hidden.grad = weight.grad = None
    loss().backward()
