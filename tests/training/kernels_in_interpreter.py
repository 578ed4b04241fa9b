"""Compares the fusion loss by its Triton kernels with PyTorch's functions, in Triton's interpreter (no GPU). Prints a line."""

import itertools
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from profuser.models.output_head import OutputHead
from profuser.training.losses import IGNORE, fusion_loss

HEADS = ({}, {"scale": 0.25}, {"softcap": 1.5}, {"scale": 3.0, "softcap": 2.0}, {"bias": True})
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
NUM, WIDTH, K = 7, 16, 4


def difference(dtype, vocab_size, settings, tail):
    """Returns the largest relative difference of the total, the losses per token, and the gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(NUM, WIDTH).to(dtype).requires_grad_()
    weight = (torch.randn(vocab_size, WIDTH) / 2).to(dtype).requires_grad_()
    bias = torch.linspace(-1, 1, vocab_size).to(dtype).requires_grad_() if settings.get("bias") else None
    head = OutputHead(weight, bias, **{name: value for name, value in settings.items() if name != "bias"})
    targets = torch.randint(vocab_size, (NUM,))
    top = torch.randn(NUM, vocab_size).mul(3).log_softmax(-1).topk(K)
    ids, logprobs = top.indices.clone(), top.values.clone()
    ids[1, 2:], logprobs[1, 2:] = 0, -torch.inf  # a short top-k
    ids[2], logprobs[2] = 0, -torch.inf  # no teacher
    targets[3], targets[0] = ids[3, 1], IGNORE
    weights = torch.rand(NUM), torch.rand(NUM)
    found = []
    for kernels in (False, True):
        leaves = [each for each in (hidden, weight, bias) if each is not None]
        loss = fusion_loss(
            hidden, head, targets, ids, logprobs, *weights, temperature=1.5, tail=tail, chunk_tokens=3, kernels=kernels
        )
        found.append([loss.total.detach(), loss.ce_nats, loss.kl_nats, *torch.autograd.grad(loss.total, leaves)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


if __name__ == "__main__":
    tails = ("bucket", "renormalise", "drop")
    cases = list(itertools.product(TOLERANCES, (100, 5000), HEADS, tails))
    for case in cases:
        assert difference(*case) < TOLERANCES[case[0]], case
    print(f"{len(cases)} cases agree")
