"""The loss of preference mode: which of two answers to a prompt is better.

Legend: N response tokens of a micro-batch, P pairs. For an answer y of T tokens to a prompt x, with the target q, and the target q0
as it was when the schedule's piece began:

    r(y)   = beta * (log q(y|x) - log q0(y|x)) / T        `dpo`, length-normalised; without `/ T` that of arXiv 2305.18290
    r(y)   = beta * log q(y|x) / T                        `simpo` (arXiv 2405.14734)
    L      = -log sigmoid(r(better) - r(worse) - margin),  averaged over the pairs of an update

The gradient of L in the target's log-probability of one token is one number for each answer, known once both answers have been
scored. So no other code for gradients is needed than the cross-entropy's: the answers are scored first, without a gradient, then
each of their tokens has a cross-entropy with that number as its weight, negative in the worse answer (`token_weights`).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from profuser.artifacts.schemas import PAIR, PARTS
from profuser.recipe.fusing import PreferenceLossConfig

PREFERRED, REJECTED = (PARTS.index(name) for name in PAIR)


def in_pair(part: Any) -> Any:
    """Returns which entries of an array or tensor of indices into `PARTS` are answers of a pair."""
    return (part == PREFERRED) | (part == REJECTED)


class PairLosses(NamedTuple):
    """The loss of each pair, and what makes its gradient."""

    nats: Float[Tensor, "P"]
    """L of each pair."""
    leads: Float[Tensor, "P"]
    """`r(better) - r(worse)`."""
    token_weights: Float[Tensor, "N"]
    """Derivative of each pair's L in the cross-entropy of each token; 0 for tokens of no pair."""


def pair_losses(
    ce_nats: Float[Tensor, "N"],
    part: Int[Tensor, "N"],
    pair: Int[Tensor, "N"],
    reference_nats: Float[Tensor, "P 2"],
    config: PreferenceLossConfig,
) -> PairLosses:
    """Computes the loss of each pair from its tokens' cross-entropies.

    Args:
        ce_nats: cross-entropy of each token; no gradient is kept.
        part: index into `PARTS` of each token's example.
        pair: index of each token's pair; any for tokens of no pair.
        reference_nats: sums of the same over the better and the worse answer under the reference; 0 for `simpo`.
        config: kind, scale and margin.
    """
    ce_nats = ce_nats.detach()
    sums, lengths = (answer_sums(each, part, pair, len(reference_nats)) for each in (ce_nats, torch.ones_like(ce_nats)))
    per = lengths.clamp_min(1) if config.length_normalised else torch.ones_like(lengths)
    rewards = config.scale * (reference_nats.to(sums) - sums) / per
    leads = rewards[:, 0] - rewards[:, 1]
    nats = nn.functional.softplus(config.margin - leads)
    slope = config.scale * torch.sigmoid(config.margin - leads)
    by_answer = torch.stack([slope, -slope], 1) / per
    inside = in_pair(part)
    weights = by_answer.reshape(-1)[torch.where(inside, 2 * pair + (part == REJECTED), 0)] if len(nats) else ce_nats
    return PairLosses(nats, leads, torch.where(inside, weights, 0.0))


def answer_sums(
    values: Float[Tensor, "N"], part: Int[Tensor, "N"], pair: Int[Tensor, "N"], num_pairs: int
) -> Float[Tensor, "P 2"]:
    """Returns the sums of a value per token over the better and the worse answer of each pair."""
    places = torch.where(in_pair(part), 2 * pair + (part == REJECTED), 2 * num_pairs)
    return values.new_zeros(2 * num_pairs + 1).index_add_(0, places, values)[:-1].reshape(-1, 2)
