"""Transport against the brute force of `continuations.py`: total variation by rule."""

from dataclasses import dataclass

import numpy as np

from profuser.alignment.matching import Matches, match
from profuser.alignment.splits import token_begins
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import Rule
from tests.benchmarks.peers.carried import exactly, ours
from tests.benchmarks.peers.continuations import Continuer, Walk, bucket_distance, distance
from tests.benchmarks.peers.models import MANY, Model, Reading

RULES = (Rule.PROJECT, Rule.CONDITION, Rule.CHAIN)
FEW = 10
"""K of the product; the rules are evaluated at `MANY`."""
RESIDUAL, BUDGET = 0.02, 96
NEAR = 48
"""Bytes of the answer that show how the target splits a source token."""


@dataclass(frozen=True)
class Sample:
    """One position. Distances are total variations."""

    rule: Rule
    many: float
    followed: float
    """With the steps after used-up candidates: `select.condition: exact`."""
    few: float
    """At K = 10, over the loss's categories."""
    followed_few: float
    realised: float
    """Carried mass of the realised token less its exact one, K = 1,024."""
    residual: float


class Exactness:
    """Samples positions of answers for one ordered pair."""

    def __init__(self, source: Model, target: Model, projection: VocabProjection, seed: int = 0):
        self.source, self.target, self.projection = source, target, projection
        self.walk = Walk(source.tokens, target.tokens)
        self.rng = np.random.default_rng(seed)

    def sample(
        self, source: Reading, target: Reading, answer: str, continuer: Continuer, per_rule: int
    ) -> list[Sample]:
        """Samples up to `per_rule` random positions of each rule, and one of PROJECT's many."""
        matches = matched(self.source, self.target, source, target)
        carried = {k: ours(source, target, answer, self.projection, k).topk for k in (MANY, FEW)}
        out = []
        sides = self.source.tokens, self.target.tokens
        followed = {k: exactly(source, target, answer, self.projection, sides, continuer, k).topk for k in (MANY, FEW)}
        for rule in RULES:
            places = np.flatnonzero((matches.rules == rule) & (matches.space == 0))
            num_samples = 1 if rule == Rule.PROJECT else per_rule
            for t in self.rng.permutation(places)[:num_samples].tolist():
                s, num = int(matches.source[t]), int(matches.consumed[t])
                consumed = (self.source.tokens[int(source.ids[s])] or b"")[:num]
                root = source.logprobs[s].exp().numpy()
                begin = int(source.spans.starts[s])
                # If the target would not split these bytes on their own, what precedes them matters, and nothing is ruled out.
                (near,) = token_begins(self.target.tokens, [answer.encode()[begin : begin + NEAR]])
                judged = bool(near[num])
                found = self.walk(root, consumed, continuer.after(s), RESIDUAL, BUDGET, judged)
                exact, own = found.exact(), int(target.ids[t])
                mine = dict(zip(*at(carried[MANY], t), strict=True)).get(own, 0.0)
                out.append(
                    Sample(
                        rule,
                        distance(*at(carried[MANY], t), exact),
                        distance(*at(followed[MANY], t), exact),
                        bucket_distance(*at(carried[FEW], t), exact),
                        bucket_distance(*at(followed[FEW], t), exact),
                        mine - exact.get(own, 0.0),
                        found.residual,
                    )
                )
        return out


def at(topk: TopK, position: int) -> tuple[list[int], list[float]]:
    """Returns ids and masses at one position."""
    return topk.ids[position].tolist(), np.exp(topk.logprobs[position]).tolist()


def matched(source: Model, target: Model, own: Reading, goal: Reading) -> Matches:
    sides = [(each.tokens, Ragged.from_rows([read.ids]), read.spans) for each, read in ((source, own), (target, goal))]
    return match(*sides[0], *sides[1])
