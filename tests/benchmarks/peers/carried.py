"""Methods that carry a source's distributions to the target's positions, and the quality of the results.

Legend: T target tokens of an answer, S source tokens, V target vocabulary, K candidates.

A carried distribution lists K tokens and leaves the rest as a tail. Two rules assign probability to a token of the tail:

- `student`: the tail's mass in the target's own proportions, `p_tail * q(y) / q_tail`. A student that fits `fusion_loss` (tail
  `bucket`) exactly converges to this, since that loss only moves the tail as a whole.
- `uniform`: the tail's mass over 65,536 tokens, so 16 bits more for any vocabulary. It needs no other model, so only this rule
  is comparable with the source's own top-k at its own positions.

A position without a distribution costs the target's own bits for its token, under both rules.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from profuser.alignment.edit_distance import nearest_tokens
from profuser.alignment.next_steps import find_used_up
from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.errors import AlignmentError
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule
from tests.benchmarks import published
from tests.benchmarks.peers.continuations import Continuer
from tests.benchmarks.peers.models import Model, Reading

TAIL_BITS = 16.0
LEAST_TAIL = 1e-6
"""Mass of an unlisted token where the listed masses already sum to 1 in float32."""


@dataclass(frozen=True, eq=False)
class Carried:
    """Distributions at T target positions."""

    topk: TopK
    taught: Bool[np.ndarray, "T"]
    """Positions with a distribution from the source."""
    rules: Int[np.ndarray, "T"] | None = None


@dataclass(frozen=True, eq=False)
class Worth:
    """Quality of a carried distribution at each of T realised tokens."""

    student_bits: Float[np.ndarray, "T"]
    uniform_bits: Float[np.ndarray, "T"]
    in_tail: Bool[np.ndarray, "T"]
    step: Float[np.ndarray, "T"]
    """First-order change of the token's log-probability under a unit step down the KL's gradient in the logits; also of a mass
    of 1 on the realised token, which is what FuseLLM's method gives where it has no distribution."""


def signals(source: Reading, top_k: int, steps: NextSteps | None = None) -> SourceSignals:
    return SourceSignals(Ragged.from_rows([source.ids]), source.own, source.topk(top_k), steps)


def ours(
    source: Reading,
    target: Reading,
    answer: str,
    projection: VocabProjection,
    top_k: int,
    steps: NextSteps | None = None,
) -> Carried:
    """Carries by `transport`, as `select` does; with the steps after used-up candidates as under `select.condition: exact`."""
    own, goals = signals(source, top_k, steps), Ragged.from_rows([target.ids])
    rows = transport_rows(own, goals, [answer.encode()], projection, top_k=top_k)
    if rows.refused:
        raise AlignmentError(rows.refused[0])
    found = rows.row(0)
    return Carried(found.topk, found.rules != Rule.NONE, found.rules.astype(np.int64))


def exactly(
    source: Reading,
    target: Reading,
    answer: str,
    projection: VocabProjection,
    sides: tuple[TokenBytes, TokenBytes],
    continuer: Continuer,
    top_k: int,
) -> Carried:
    """Carries under `select.condition: exact`: the source is queried after each used-up candidate, one by one."""
    goals = Ragged.from_rows([target.ids])
    found = find_used_up(signals(source, top_k), goals, [answer.encode()], *sides, AlignmentRules())
    rows = [next(continuer.after(s)([(each,)])) for s, each in zip(*(part.tolist() for part in found), strict=True)]
    if not rows:
        return ours(source, target, answer, projection, top_k)
    best = torch.from_numpy(np.stack(rows)).log().topk(top_k, dim=1)
    steps = NextSteps(*found, TopK(best.indices.int().numpy(), best.values.numpy()))
    return ours(source, target, answer, projection, top_k, steps)


class MinEdit:
    """Projection with `vocab_fallback: min_edit`, only for source tokens that occur: all tokens take minutes per pair."""

    def __init__(self, source: TokenBytes, target: TokenBytes):
        self.projection = VocabProjection.build(source, target, fallback="tail")
        self.projection.fallback = "min_edit"
        self.found = source.lengths == 0
        self.found |= self.projection.whole >= 0

    def with_tokens(self, ids: Int[np.ndarray, "..."]) -> VocabProjection:
        """Returns the projection, after finding the nearest tokens of these."""
        missing = np.unique(ids)[~self.found[np.unique(ids)]]
        texts = [self.projection.source[index] or b"" for index in missing.tolist()]
        self.projection.whole[missing] = nearest_tokens(self.projection.target, texts)
        self.found[missing] = True
        return self.projection


def fusellm(source: Reading, target: Reading, models: tuple[Model, Model], mapping: VocabProjection) -> Carried:
    """Carries by FuseLLM's method as its paper describes it (`published.py`), comparing tokens by their bytes.

    A position without exactly one partner gets mass 1 on the realised token, which is not a distribution of the source.
    """
    topk = source.topk(10)
    pieces = _spelt(models[0], source), _spelt(models[1], target)
    whole = {index: goal for index in np.unique(topk.ids).tolist() if (goal := int(mapping.whole[index])) >= 0}
    rows = published.carry(*pieces, topk.ids.tolist(), topk.logprobs.tolist(), whole, target.ids.tolist())
    ids, logprobs = np.zeros((len(rows), 10), dtype=np.int32), np.full((len(rows), 10), -np.inf, dtype=np.float32)
    for place, row in enumerate(rows):
        ordered = sorted(row.items(), key=lambda pair: -pair[1])
        ids[place, : len(row)] = [index for index, _ in ordered]
        logprobs[place, : len(row)] = [value for _, value in ordered]
    partners = published.align(*pieces)
    taught = np.array([len(each) == 1 for each in partners]) & (logprobs[:, 0] > -np.inf)
    return Carried(TopK(ids, logprobs), taught)


def worth(carried: Carried, target: Reading) -> Worth:
    """Returns the bits of the realised tokens, and how a step of the loss changes them.

    With p completed in the tail as `student`, the gradient of KL in the logits is `q - p`, and a unit step against it changes
    `log q(y)` by `(p_y - q_y) - sum_j q_j (p_j - q_j)` to first order. It is 0 where nothing is listed.
    """
    topk, places = carried.topk, np.arange(len(target.ids))
    valid = topk.logprobs > -np.inf
    p = np.where(valid, np.exp(topk.logprobs.astype(np.float64)), 0.0)
    listed = target.logprobs.gather(1, torch.from_numpy(topk.ids.astype(np.int64))).double().exp().numpy()
    q = np.where(valid, listed, 0.0)
    q_own = np.exp(target.own.astype(np.float64))
    tail_p, tail_q = np.maximum(1 - p.sum(1), LEAST_TAIL), np.maximum(1 - q.sum(1), LEAST_TAIL)
    is_own = valid & (topk.ids == target.ids[:, None])
    in_tail = ~is_own.any(1)
    listed_mass = p[places, is_own.argmax(1)]
    p_own = np.where(in_tail, tail_p / tail_q * q_own, listed_mass)
    uniform = np.where(in_tail, tail_p * 2.0**-TAIL_BITS, listed_mass)
    squares = target.squares
    products = (q * p).sum(1) + tail_p / tail_q * (squares - (q * q).sum(1))
    taught = carried.taught
    return Worth(
        -np.log2(np.where(taught, p_own, q_own)),
        -np.log2(np.where(taught, uniform, q_own)),
        in_tail & taught,
        np.where(valid[:, 0], (p_own - q_own) - (products - squares), 0.0),
    )


def own_top_k_bits(source: Reading, top_k: int) -> Float[np.ndarray, "S"]:
    """Returns the bits of the source's own tokens under its own top-k, with a `uniform` tail."""
    topk = source.topk(top_k)
    mass = np.exp(topk.logprobs.astype(np.float64))
    is_own = topk.ids == source.ids[:, None]
    tail = np.maximum(1 - mass.sum(1), LEAST_TAIL) * 2.0**-TAIL_BITS
    return -np.log2(np.where(is_own.any(1), (mass * is_own).sum(1), tail))


def _spelt(model: Model, reading: Reading) -> list[str]:
    """Returns a row's tokens by their bytes, a character each."""
    return [(model.tokens[index] or b"").decode("latin-1") for index in reading.ids.tolist()]
