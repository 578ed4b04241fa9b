"""Groups of bytes that both tokenizers delimit, and whether a step of a loss moves them where the teacher would.

A group is a maximal span without a boundary that both have inside it; ends of turn belong to none. At the level of bytes all that
two models of any tokenizers share is the probability of a group's text given what is before it: `log P(g)`, the sum over its
tokens, for the source (the teacher) and the target (the student). The exact teacher at this level, `KL` between "this text" and
"any other", raises `log P(g)` of the target where the source's is larger and lowers it elsewhere. A method agrees in a group
where its first-order change of the target's `log P(g)`, a unit step down its own gradient in the target's logits, has that sign.
A method that does not move a group does not agree there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tests.benchmarks.peers.models import Reading


@dataclass(frozen=True, eq=False)
class Groups:
    """Group g is source tokens `[source[g], source[g + 1])` and target tokens `[target[g], target[g + 1])`."""

    source: Int[np.ndarray, "G+1"]
    target: Int[np.ndarray, "G+1"]

    @classmethod
    def find(cls, source_ends: Int[np.ndarray, "S"], target_ends: Int[np.ndarray, "T"]) -> "Groups":
        """Builds groups from the byte ends of both sides' tokens, which rise to the same last one."""
        common = np.intersect1d(source_ends, target_ends)
        return cls(*(np.append(0, np.searchsorted(ends, common, side="right")) for ends in (source_ends, target_ends)))

    def __len__(self) -> int:
        return len(self.source) - 1

    @property
    def one_to_one(self) -> Bool[np.ndarray, "G"]:
        return (np.diff(self.source) == 1) & (np.diff(self.target) == 1)

    def some(self, chosen: Bool[np.ndarray, "G"]) -> "Chosen":
        """Returns some of the groups, concatenated, and their source and target positions."""
        bounds, places = [], []
        for side in (self.source, self.target):
            parts = [np.arange(side[g], side[g + 1]) for g in np.flatnonzero(chosen)]
            bounds.append(np.append(0, np.cumsum([len(part) for part in parts])))
            places.append(np.concatenate(parts))
        return Chosen(Groups(*bounds), *places)

    def wanted(self, source: Reading, target: Reading) -> Float[np.ndarray, "G"]:
        """Returns `log P(g)` of the source minus that of the target, in nats."""
        return _sums(source.own, self.source) - _sums(target.own, self.target)

    def moved(self, step: Float[np.ndarray, "T"]) -> Float[np.ndarray, "G"]:
        """Returns the change of each group's log-probability from those of its tokens."""
        return _sums(step, self.target)


class Chosen(NamedTuple):
    groups: Groups
    source: Int[np.ndarray, "s"]
    target: Int[np.ndarray, "t"]


def _sums(values: Float[np.ndarray, "T"], bounds: Int[np.ndarray, "G+1"]) -> Float[np.ndarray, "G"]:
    running = np.append(0.0, np.cumsum(values.astype(np.float64)))
    return np.diff(running[bounds])


def steps(gradient: Float[Tensor, "T V"], target: Reading) -> Float[np.ndarray, "T"]:
    """First-order change of each token's log-probability, a unit step down a gradient in the logits: `-(g_y - sum_j q_j g_j)`."""
    own = gradient.gather(1, torch.from_numpy(target.ids)[: len(gradient), None])[:, 0]
    mean = torch.linalg.vecdot(target.probabilities[: len(gradient)], gradient)
    return (mean - own).double().numpy()
