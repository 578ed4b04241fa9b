"""Divergences of the student's distribution q from a teacher's p that is known only at its top-k, with their gradients.

Legend: n tokens, K top-k, C categories (K, or K + 1 with a tail).

    forward_kl   KL(p || q)
    reverse_kl   KL(q || p)
    jsd          a KL(p || m) + (1 - a) KL(q || m),  m = a p + (1 - a) q     generalised Jensen-Shannon (arXiv 2306.13649)
    skew         KL(p || m),                         m = a p + (1 - a) q     skewed KL (arXiv 2402.03898)

Both distributions are first reduced to the same categories: `bucket` adds one for all other tokens, `renormalise` and `drop` keep
only the top-k. A temperature T is applied to the categories of both. Each divergence is zero, with zero gradient, exactly where
the categories agree (the reverse KL takes a teacher's tail below `SMALLEST_TAIL` to be that). What a truncated teacher leaves of
them:

- `bucket` at T = 1 is a lower bound of the divergence between the whole distributions (all four are f-divergences, which merging
  categories never raises), and equal to it where student and teacher agree on the proportions of the tokens outside the top-k.
- `renormalise` is the divergence between the distributions given that the token is in the top-k.
- `drop` does not normalise: terms `q - p` (forward), `p - q` (reverse) and `m - p` (skew) are added, which keep the minimum at
  agreement.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Tail = Literal["bucket", "renormalise", "drop"]
Kind = Literal["forward_kl", "reverse_kl", "jsd", "skew"]
SMALLEST_TAIL = 1e-5
"""Least tail mass of a teacher in the reverse KL, which would be infinite where the teacher has none."""


@dataclass(frozen=True)
class Divergence:
    """A divergence; `alpha` is the weight a of `jsd` and `skew`."""

    kind: Kind = "forward_kl"
    alpha: float = 0.5

    def __call__(
        self,
        log_p: Float[Tensor, "n K"],
        log_q: Float[Tensor, "n K"],
        tail_q: Float[Tensor, "n"],
        temperature: float,
        tail: Tail,
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n K"], Float[Tensor, "n"]]:
        """Returns the divergence in nats, and its gradients in the student's log-probabilities of the top-k and of the tail.

        Args:
            log_p: the teacher's natural log-probabilities of its top-k; -inf marks an empty entry.
            log_q: the student's of the same tokens; -inf for an empty entry.
            tail_q: the student's mass outside them, above 0.
            temperature: T.
            tail: treatment of the mass outside the top-k.
        """
        if tail == "bucket":
            least = SMALLEST_TAIL if self.kind == "reverse_kl" else 0.0
            tail_p = (1 - log_p.exp().sum(-1)).clamp_min(least)
            log_p = torch.cat([log_p, tail_p.log()[:, None]], -1)
            log_q = torch.cat([log_q, tail_q.log()[:, None]], -1)
        log_p, log_q = log_p / temperature, log_q / temperature
        if tail != "drop":
            log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        value, grad = self._terms(log_p, log_q, normalised=tail != "drop")
        grad = grad / temperature
        if tail == "bucket":
            return value, grad[:, :-1], grad[:, -1]
        return value, grad, torch.zeros_like(value)

    def _terms(
        self, log_p: Float[Tensor, "n C"], log_q: Float[Tensor, "n C"], normalised: bool
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n C"]]:
        """Returns the divergence, and its gradient in the log-probabilities of q; in those before the softmax if normalised."""
        p, q = log_p.exp(), log_q.exp()
        if self.kind == "forward_kl":
            value = _sum(p, log_p, log_q) + (0.0 if normalised else (q - p).sum(-1))
            return value, q - p
        if self.kind == "reverse_kl":
            value = _sum(q, log_q, log_p) + (0.0 if normalised else (p - q).sum(-1))
            slope = torch.where(q > 0, q * (log_q - log_p), 0.0)
        else:
            log_m = torch.logaddexp(log_p + math.log(self.alpha), log_q + math.log1p(-self.alpha))
            m = log_m.exp()
            value = _sum(p, log_p, log_m)
            if self.kind == "jsd":
                value = self.alpha * value + (1 - self.alpha) * _sum(q, log_q, log_m)
                slope = (1 - self.alpha) * torch.where(q > 0, q * (log_q - log_m), 0.0)
            else:
                value = value + (0.0 if normalised else (m - p).sum(-1))
                slope = (1 - self.alpha) * torch.where(m > 0, q * (m - p) / m, 0.0)
        return value, slope - q * slope.sum(-1, keepdim=True) if normalised else slope


FORWARD_KL = Divergence()


def _sum(a: Float[Tensor, "n C"], log_a: Float[Tensor, "n C"], log_b: Float[Tensor, "n C"]) -> Float[Tensor, "n"]:
    """Returns the sum of `a log(a / b)` over categories; those with a = 0 add nothing."""
    return torch.where(a > 0, a * (log_a - log_b), 0.0).sum(-1)
