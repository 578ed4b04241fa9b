"""Holds a source's signals along responses: its tokens, their log-probabilities, and its distributions.

Legend: B rows, N_s source tokens of all rows together, n positions, K top-k, C = K + 1 candidates, U used-up candidates.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from profuser.alignment.token_bytes import TokenBytes
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged


@dataclass(frozen=True, eq=False)
class NextSteps:
    """The source's distributions one token after U candidates, each substituted for a response token."""

    positions: Int[np.ndarray, "U"]
    """Source token (an index into all N_s) that the candidate replaces; ascending."""
    candidates: Int[np.ndarray, "U"]
    topk: TopK
    """Distributions of the token after the candidate; U positions."""

    def find(self, positions: Int[np.ndarray, "n"], candidates: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Returns the index of each position and candidate's step, -1 where there is none."""
        if not len(self.positions):
            return np.full(len(positions), -1)
        ordered, order = self._ordered
        wanted = _keys(positions, candidates)
        places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        return np.where(ordered[places] == wanted, order[places], -1)

    @cached_property
    def _ordered(self) -> tuple[Int[np.ndarray, "U"], Int[np.ndarray, "U"]]:
        """Returns the keys of the steps in ascending order, and that order."""
        keys = _keys(self.positions, self.candidates)
        order = np.argsort(keys)
        return keys[order], order


@dataclass(frozen=True, eq=False)
class SourceSignals:
    """A source's tokens along B responses, their log-probabilities and the distributions at their positions."""

    ids: Ragged
    """Response tokens of each row, a final end of turn included."""
    logprobs: Float[np.ndarray, "N_s"]
    """Natural log-probability of each token at temperature 1."""
    topk: TopK
    """Distributions over the source's vocabulary at each token's position."""
    steps: NextSteps | None = None
    """Distributions after used-up candidates, if they were requested (`select.condition: exact`)."""

    def candidates(
        self, positions: Int[np.ndarray, "n"]
    ) -> tuple[Int[np.ndarray, "n C"], Float[np.ndarray, "n C"], Bool[np.ndarray, "n C"]]:
        """Returns ids and masses of the top-k, then of the realised token if it is not among them; and a mask of that token."""
        actual = self.ids.values[positions].astype(np.int64)[:, None]
        ids = np.concatenate([self.topk.ids[positions], actual], axis=1)
        logprobs = np.concatenate([self.topk.logprobs[positions], self.logprobs[positions, None]], axis=1)
        mass = np.exp(logprobs.astype(np.float64))
        realised = (ids == actual) & (mass > 0)
        listed = realised[:, :-1].any(axis=1)
        mass[listed, -1] = 0.0
        realised[listed, -1] = False
        return ids, mass, realised


def share_prefix(
    tokens: TokenBytes,
    candidates: Integer[np.ndarray, "n C"],
    actual: Integer[np.ndarray, "n"],
    num_bytes: Int[np.ndarray, "n"],
) -> Bool[np.ndarray, "n C"]:
    """Returns whether candidates begin with the first `num_bytes` of the realised token; true for all where that is 0."""
    nodes, num = tokens.prefix_nodes, num_bytes[:, None]
    long_enough = tokens.lengths[candidates] >= num
    places = np.where(long_enough & (num > 0), tokens.starts[candidates] + num - 1, 0)
    own = np.where(num_bytes > 0, tokens.starts[actual] + num_bytes - 1, 0)
    return (num == 0) | (long_enough & (nodes[places] == nodes[own][:, None]))


def _keys(positions: Int[np.ndarray, "n"], candidates: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    return (positions.astype(np.int64) << 32) | candidates
