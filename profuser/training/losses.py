"""The fusion loss, from hidden states and the output layer, in chunks of tokens: the full logits are never materialised.

Legend: N response tokens of a micro-batch, D hidden size, V vocabulary, K top-k, n tokens of a chunk.

    L = sum_n  ce_weight[n] * CE_n  +  kl_weight[n] * D_n,       CE_n = -log q_n(y_n),      D_n = D(p_n, q_n)

q is the student's distribution, p the teacher's, known only at its top-k ids. D is the forward KL, or another divergence
(`divergences.py`).

With `ahead_only`, kl_weight[n] counts only where p_n(y_n) > q_n(y_n): where the teacher gives the response's token more probability
than the student does now. The comparison has no gradient. Outside the top-k, p_n(y_n) is taken as the whole tail mass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from profuser.models.output_head import OutputHead
from profuser.training import loss_kernels
from profuser.training.divergences import FORWARD_KL, Divergence, Tail
from profuser.training.loss_passes import KernelPasses, Passes, PlainPasses
from profuser.training.preference import PairLosses

IGNORE = -100
"""As a target: the token is ignored, as in `torch.nn.functional.cross_entropy`."""


class TokenLosses(NamedTuple):
    """The weighted sum to differentiate, with its detached parts: losses per token, and token counts.

    A sum over tokens divided by the count is a mean in nats per token; over several micro-batches, sum both first.
    """

    total: Float[Tensor, ""]
    ce_nats: Float[Tensor, "N"]
    """Cross-entropy of each token, 0 if it is ignored."""
    kl_nats: Float[Tensor, "N"]
    """KL of each token, or what takes its place; 0 if it is ignored or has no teacher."""
    num_tokens: Int[Tensor, ""]
    """Tokens that are not ignored."""
    num_taught: Int[Tensor, ""]
    """Tokens that are not ignored and have a teacher's distribution."""
    pairs: PairLosses | None = None
    """Losses of the pairs of preference mode; None if there are none."""


def fusion_loss(
    hidden: Float[Tensor, "N D"],
    head: OutputHead,
    targets: Int[Tensor, "N"],
    topk_ids: Int[Tensor, "N K"],
    topk_logprobs: Float[Tensor, "N K"],
    ce_weight: Float[Tensor, "N"],
    kl_weight: Float[Tensor, "N"],
    temperature: float = 1.0,
    tail: Tail = "bucket",
    chunk_tokens: int = 1024,
    kernels: bool | None = None,
    ahead_only: bool = False,
    divergences: Sequence[Divergence] = (FORWARD_KL,),
    kinds: Int[Tensor, "N"] | None = None,
) -> TokenLosses:
    """Computes cross-entropy and a divergence from the teacher over response tokens together.

    Under autocast the products with the output weight run in its type; everything else is float32 (float64 for float64 inputs).

    Args:
        hidden: the student's last hidden states at the positions that predict `targets`.
        head: the student's output layer.
        targets: ids of the response tokens; `IGNORE` for an ignored token.
        topk_ids: ids of the teacher's top-k in the student's vocabulary.
        topk_logprobs: their natural log-probabilities; -inf marks an empty entry.
        ce_weight: weight of each token's cross-entropy, including the division by the global token count.
        kl_weight: weight of each token's KL; 0 where the position carries CE only.
        temperature: temperature of both distributions in the KL.
        tail: treatment of the mass outside the top-k.
        chunk_tokens: tokens whose logits exist at once.
        kernels: use Triton kernels for the passes over the vocabulary; by default if they can run.
        ahead_only: leave out the KL of tokens to which the teacher gives no more probability than the student.
        divergences: what takes the place of the KL.
        kinds: for each token, its index in `divergences`; by default all have the first.

    Returns:
        The sum over tokens and its parts in nats per token. The gradient is computed in the same pass as the value, so the
        backward pass needs no second product with the vocabulary.
    """
    kind = hidden.device.type
    hidden, weight = _product_types(hidden, head.weight)
    kernels = loss_kernels.kernels_supported(hidden.device) if kernels is None else kernels
    working = _working(hidden.dtype)
    topk_logprobs, ce_weight, kl_weight = (each.to(working) for each in (topk_logprobs, ce_weight, kl_weight))
    counted = targets != IGNORE
    taught = counted & (topk_logprobs[:, 0] > -torch.inf)
    with torch.autocast(kind, enabled=False):
        total, ce, kl = _FusionLoss.apply(  # type: ignore[misc]
            hidden,
            weight,
            head.bias,
            head.scale,
            head.softcap,
            torch.where(counted, targets, 0),
            topk_ids,
            torch.where(counted[:, None], topk_logprobs, -torch.inf),
            torch.where(counted, ce_weight, 0.0),
            torch.where(taught, kl_weight, 0.0),
            temperature,
            tail,
            chunk_tokens,
            kernels and working == torch.float32,
            ahead_only,
            tuple(divergences),
            torch.zeros_like(targets) if kinds is None else kinds,
        )
    return TokenLosses(total, ce * counted, kl, counted.sum(), taught.sum())


@torch.no_grad()
def token_nats(
    hidden: Float[Tensor, "N D"],
    head: OutputHead,
    targets: Int[Tensor, "N"],
    chunk_tokens: int = 1024,
    kernels: bool | None = None,
) -> Float[Tensor, "N"]:
    """Returns the cross-entropy of each token as `fusion_loss` computes it, without gradients. Arguments as there."""
    hidden, weight = _product_types(hidden, head.weight)
    working = _working(hidden.dtype)
    kernels = loss_kernels.kernels_supported(hidden.device) if kernels is None else kernels
    make = KernelPasses if kernels and working == torch.float32 else PlainPasses
    out = torch.empty(len(hidden), dtype=working, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            passes = make(hidden[part] @ weight.T, head.bias, head.scale, head.softcap)
            out[part] = -passes.log_probs(targets[part, None])[:, 0]
    return out


def _product_types(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in the type of autocast's products, if it is on."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return hidden, weight
    low = torch.get_autocast_dtype(kind)
    return hidden.to(low), weight.to(low)


class _FusionLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        hidden,
        weight,
        bias,
        scale,
        softcap,
        targets,
        ids,
        logprobs,
        ce_weight,
        kl_weight,
        temperature,
        tail,
        chunk_tokens,
        kernels,
        ahead_only,
        divergences,
        kinds,
    ):
        working = _working(hidden.dtype)
        # Sums over chunks are in full precision, whatever the type of the products. A frozen layer (LoRA) has no gradient.
        dtypes = (hidden.dtype, working, working)
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros_like(tensor, dtype=dtype) if wanted else None
            for tensor, dtype, wanted in zip((hidden, weight, bias), dtypes, ctx.needs_input_grad, strict=False)
        )
        ce = torch.empty(len(hidden), dtype=working, device=hidden.device)
        kl, kl_weight = torch.empty_like(ce), kl_weight.clone()
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            passes = (KernelPasses if kernels else PlainPasses)(hidden[part] @ weight.T, bias, scale, softcap)
            if ahead_only:
                kl_weight[part] *= _teacher_is_ahead(passes, targets[part], ids[part], logprobs[part])
            tokens = (targets[part], ids[part], logprobs[part], ce_weight[part], kl_weight[part], kinds[part])
            ce[part], kl[part], grad = _chunk(passes, *tokens, temperature, tail, divergences)
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=working)
            low = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = low @ weight
            if grad_weight is not None:
                _add_product(grad_weight, low.T, hidden[part], kernels)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias)
        ctx.mark_non_differentiable(ce, kl)
        return (ce_weight * ce + kl_weight * kl).sum(), ce, kl

    @staticmethod
    def backward(ctx, grad_total, *_):  # type: ignore[override]
        grads = [None if grad is None else grad * grad_total for grad in ctx.saved_tensors]
        return *grads, *(None,) * 14


def _add_product(total: Float[Tensor, "V D"], a: Float[Tensor, "V n"], b: Float[Tensor, "n D"], kernels: bool) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif kernels:
        loss_kernels.add_product_(total, a, b)
    else:
        total += a @ b


def _working(dtype: torch.dtype) -> torch.dtype:
    """Returns float32, or float64 if the model is float64 (for gradient checks)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _teacher_is_ahead(
    passes: Passes, targets: Int[Tensor, "n"], ids: Int[Tensor, "n K"], logprobs: Float[Tensor, "n K"]
) -> Bool[Tensor, "n"]:
    """Returns where the teacher gives the token more probability than the student does; outside the top-k it has the tail mass."""
    at_target = (ids == targets[:, None]) & (logprobs > -torch.inf)
    tail = (1 - logprobs.exp().sum(-1)).clamp_min(0.0)
    own = torch.where(at_target.any(-1), torch.where(at_target, logprobs.exp(), 0.0).sum(-1), tail)
    return own > passes.log_probs(targets[:, None])[:, 0].exp()


def _chunk(
    passes: Passes,
    targets: Int[Tensor, "n"],
    ids: Int[Tensor, "n K"],
    logprobs: Float[Tensor, "n K"],
    ce_weight: Float[Tensor, "n"],
    kl_weight: Float[Tensor, "n"],
    kinds: Int[Tensor, "n"],
    temperature: float,
    tail: Tail,
    divergences: Sequence[Divergence],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n V"]]:
    """Returns CE, KL and the weighted sum's gradient with respect to the logits, for one chunk; reuses the logits' memory.

    With g_c the KL's gradient in the category log-probabilities, the gradient in logit j is
    `g_j - q_j G` for a top-k token and `g_tail q_j / q_tail - q_j G` for any other, where G is the sum of all g.
    """
    valid = logprobs > -torch.inf
    has_teacher = valid[:, 0]
    # An empty entry repeats the first id.
    ids = torch.where(valid, ids, ids[:, :1])
    own = passes.log_probs(targets[:, None])[:, 0]
    every = passes.log_probs(ids)
    log_q = torch.where(valid, every, -torch.inf)
    tail_q = (1 - log_q.exp().sum(-1)).clamp_min(torch.finfo(log_q.dtype).eps)
    kl, grad_top, grad_tail = divergences[0](logprobs.to(log_q.dtype), log_q, tail_q, temperature, tail)
    for kind, other in enumerate(divergences[1:], 1):
        chosen, found = kinds == kind, other(logprobs.to(log_q.dtype), log_q, tail_q, temperature, tail)
        kl, grad_tail = torch.where(chosen, found[0], kl), torch.where(chosen, found[2], grad_tail)
        grad_top = torch.where(chosen[:, None], found[1], grad_top)
    kl = torch.where(has_teacher, kl, 0.0)
    grad_top = torch.where(valid, grad_top, 0.0) * kl_weight[:, None]
    grad_tail = torch.where(has_teacher, grad_tail, 0.0) * kl_weight
    # q_j has this factor for a top-k token; any other token also has its share of the tail's gradient.
    factor = ce_weight - grad_top.sum(-1) - grad_tail
    other = factor + grad_tail / tail_q
    # Entries of the top-k and of the target are set, not corrected: differences would cancel when q_tail is tiny, and in half
    # precision when the target's probability is near 1.
    is_target = ids == targets[:, None]
    top = factor[:, None] * every.exp() + grad_top - ce_weight[:, None] * is_target
    top = torch.where(valid, top, top[:, :1])
    at_target = torch.where(
        is_target.any(-1), top.gather(1, is_target.int().argmax(-1, keepdim=True))[:, 0], other * own.exp() - ce_weight
    )
    places = torch.cat([ids, targets[:, None]], -1)
    return -own, kl, passes.gradient(other, places, torch.cat([top, at_target[:, None]], -1))
