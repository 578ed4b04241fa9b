"""The fusion loss, forward and backward: time and memory against Liger's cross-entropy, dense code and the bare products."""

from collections.abc import Iterator

import torch

from profuser.models.output_head import OutputHead
from profuser.training import loss_kernels
from profuser.training.losses import fusion_loss
from tests.benchmarks.gpu.device import DEVICE, DTYPE, Sizes, free, peak_bytes, seconds_of
from tests.benchmarks.measure import Row

K, BETA = 10, 0.11


def inputs(sizes: Sizes, vocab_size: int) -> dict[str, torch.Tensor]:
    """Draws random hidden states, output weight, targets and a teacher's top-k."""
    torch.manual_seed(0)
    num, width = sizes.loss_tokens, sizes.hidden_size
    hidden = torch.randn(num, width, device=DEVICE, dtype=DTYPE).requires_grad_()
    weight = (torch.randn(vocab_size, width, device=DEVICE, dtype=DTYPE) / width**0.5).requires_grad_()
    logprobs = torch.randn(num, K, device=DEVICE).sub(0.5).log_softmax(-1).sort(descending=True).values - 0.1
    spread = torch.randint(vocab_size // K, (num, K), device=DEVICE) * K + torch.arange(K, device=DEVICE)
    targets = torch.randint(vocab_size, (num,), device=DEVICE)
    return {"hidden": hidden, "weight": weight, "targets": targets, "ids": spread, "logprobs": logprobs}


def run(sizes: Sizes, vocab_size: int) -> Iterator[Row]:
    """Yields the rows for one vocabulary."""
    made = inputs(sizes, vocab_size)
    hidden, weight, targets = made["hidden"], made["weight"], made["targets"]
    num = len(hidden)
    share = torch.full((num,), 1 / num, device=DEVICE)

    def ours(kernels: bool, chunk_tokens: int = sizes.chunk_tokens):
        rest = targets, made["ids"], made["logprobs"], share, BETA * share
        return fusion_loss(hidden, OutputHead(weight), *rest, chunk_tokens=chunk_tokens, kernels=kernels).total

    def liger():
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets)[0]

    def cross_entropy():
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets)

    def dense():
        logits = (hidden @ weight.T).float()
        teacher = torch.zeros_like(logits).scatter_(1, made["ids"], made["logprobs"].exp())
        kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="none").sum(-1)
        return torch.nn.functional.cross_entropy(logits, targets) + BETA * kl.mean()

    def products():
        with torch.no_grad():
            for part in hidden.split(sizes.chunk_tokens):
                logits = part @ weight.T
                _ = logits @ weight, logits.T @ part

    def both(loss):
        def way():
            hidden.grad = weight.grad = None
            loss().backward()

        return way

    has_kernels = loss_kernels.kernels_supported(DEVICE)
    losses = {"ours": lambda: ours(has_kernels), "liger": liger, "cross-entropy": cross_entropy, "dense": dense}
    if has_kernels:
        losses |= {"plain": lambda: ours(False), "wide": lambda: ours(True, 4 * sizes.chunk_tokens)}
        yield _kernels_agree(made, sizes)
    ways = {name: both(loss) for name, loss in losses.items()} | {"products": products}
    seconds = seconds_of(ways, sizes.rounds)
    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    title = f"loss, {num:,} tokens, vocabulary {vocab_size:,}"
    reach = {"liger": "<= 1.15 x", "products": "<= 1.3 x", "dense": "", "cross-entropy": ""}
    for name, wanted in reach.items():
        if name in seconds:
            yield Row(f"{title}: time, against {name}", 1e3 * seconds["ours"], "ms", 1e3 * seconds[name], wanted)
    for name, words in {
        "plain": "PyTorch's functions alone",
        "wide": "the same with chunks four times as large",
    }.items():
        if name in seconds:
            yield Row(f"{title}: time, {words}, against the kernels", 1e3 * seconds[name], "ms", 1e3 * seconds["ours"])
    memory = {name: peak_bytes(ways[name]) - gradients for name in ("ours", "liger", "dense") if name in seconds}
    for name in ("liger", "dense"):
        if name in memory:
            yield Row(
                f"{title}: memory above gradients, against {name}", memory["ours"] / 2**20, "MiB", memory[name] / 2**20
            )
    made.clear()
    free()


def _kernels_agree(made: dict[str, torch.Tensor], sizes: Sizes) -> Row:
    """Compares the kernels' gradient with that of PyTorch's functions in the same type, over one chunk of tokens."""
    part = {name: each.detach()[: sizes.chunk_tokens] for name, each in made.items() if name != "weight"}
    weight = made["weight"].detach()
    share = torch.full((len(part["hidden"]),), 1.0, device=DEVICE)
    grads = []
    for kernels in (True, False):
        hidden = part["hidden"].clone().requires_grad_()
        rest = part["targets"], part["ids"], part["logprobs"], share, BETA * share
        fusion_loss(
            hidden, OutputHead(weight), *rest, chunk_tokens=sizes.chunk_tokens, kernels=kernels
        ).total.backward()
        assert hidden.grad is not None
        grads.append(hidden.grad.float())
    difference = float((grads[0] - grads[1]).norm() / grads[1].norm())
    return Row("loss: gradient by the kernels, off that by PyTorch", difference, "of its norm", None, "<= 0.01")
