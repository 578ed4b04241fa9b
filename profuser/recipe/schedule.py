"""Progressive schedules: the weights of the modes as a function of training progress.

A schedule is data: pieces over progress 0..1, each with the weights of inference, training, preference and on-policy mode at its
start and end. Paper: `L = w1 * L_infer + w2 * L_train`, first `(1, 0)`, then `(0.1, 1)` (arXiv 2408.04998). The other two modes are
not in the paper, nor is that a piece may end early, when the target has stopped improving; `Schedule` keeps track of that.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import fmean
from typing import Any, Literal, NamedTuple

from pydantic import Field

from profuser.config import Config, later_field


class ModeWeights(NamedTuple):
    """Weights of the losses of the modes at one update."""

    inference: float
    training: float
    preference: float = 0.0
    on_policy: float = 0.0


class Weights(Config):
    """The weights of a recipe at one place of the schedule."""

    inference: float = Field(ge=0)
    """Weight of the inference-mode loss."""
    training: float = Field(ge=0)
    """Weight of the training-mode loss."""
    preference: float = later_field(0.0, ge=0)
    """Weight of the preference-mode loss."""
    on_policy: float = later_field(0.0, ge=0)
    """Weight of the on-policy loss."""


class Plateau(Config):
    """Criterion for a plateau of the inference-mode loss: its mean over a window of updates hardly decreases any more."""

    window_steps: int = Field(default=20, gt=0)
    """Updates in each of the two windows compared: the latest ones, and those before them."""
    min_gain: float = Field(default=0.01, ge=0, lt=1)
    """Relative decrease of the mean loss from one window to the next below which the piece ends."""


class SchedulePiece(Config):
    """A piece of the run, from the end of the previous piece to `until`."""

    until: float = Field(gt=0, le=1)
    """Progress at which this piece ends, as a share of all updates."""
    inference: float = Field(ge=0)
    """Weight of the inference-mode loss (at the start, for a moving piece)."""
    training: float = Field(ge=0)
    """Weight of the training-mode loss (at the start, for a moving piece)."""
    preference: float = later_field(0.0, ge=0)
    """Weight of the preference-mode loss (at the start, for a moving piece); it needs the pairs of `select.preference`."""
    on_policy: float = later_field(0.0, ge=0)
    """Weight of the on-policy loss (at the start, for a moving piece); it needs the examples of `select.on_policy`."""
    shape: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the weights' change towards `to`."""
    to: Weights | None = None
    """Weights at the end of a moving piece."""
    moves_on: Plateau | None = None
    """Criterion to end before `until`: the inference-mode loss stops improving. Later pieces then share the remaining updates."""


PROGRESSIVE: tuple[SchedulePiece, ...] = (
    SchedulePiece(until=0.5, inference=1.0, training=0.0),
    SchedulePiece(until=1.0, inference=0.1, training=1.0),
)
"""The paper's two stages, each for half of the updates."""


def check_pieces(pieces: Sequence[SchedulePiece]) -> None:
    """Raises ValueError unless the pieces cover 0..1 in order, have a `to` exactly if they move, and have a weight above 0."""
    if not pieces or pieces[-1].until != 1.0:
        raise ValueError("schedule: the last piece must have until: 1.0")
    start = 0.0
    for index, piece in enumerate(pieces):
        if piece.until <= start:
            raise ValueError(f"schedule[{index}]: until={piece.until} does not come after {start}")
        if (piece.shape == "constant") != (piece.to is None):
            raise ValueError(f"schedule[{index}]: shape {piece.shape!r} {'takes no' if piece.to else 'needs a'} `to`")
        if not any(any(weights_of(each)) for each in (piece, piece.to) if each):
            raise ValueError(f"schedule[{index}]: all weights are 0: nothing would be learnt")
        if piece.moves_on and index == len(pieces) - 1:
            raise ValueError(f"schedule[{index}]: the last piece takes no `moves_on`: there is no piece after it")
        if piece.moves_on and piece.inference == 0 and (piece.to is None or piece.to.inference == 0):
            raise ValueError(f"schedule[{index}]: `moves_on` watches the inference-mode loss, whose weight is 0 here")
        start = piece.until


def weights_of(place: SchedulePiece | Weights) -> ModeWeights:
    """Returns the weights at the start of a piece, or at its end."""
    return ModeWeights(place.inference, place.training, place.preference, place.on_policy)


def uses(pieces: Sequence[SchedulePiece], mode: Literal["inference", "training", "preference", "on_policy"]) -> bool:
    """Returns whether any piece has a weight of a mode."""
    return any(getattr(each, mode) for piece in pieces for each in (piece, piece.to) if each)


def round_starts(pieces: Sequence[SchedulePiece], rounds: int) -> tuple[Fraction, ...]:
    """Returns the progress at which each round begins, of `rounds` equal ones. One in which `on_policy` has no weight needs no new
    answers: it continues the one before."""
    # As written: the float 0.7 is below seven tenths.
    begins = [Fraction(0), *(Fraction(str(piece.until)) for piece in pieces)]
    # Where an earlier piece may end before its time, a later one may begin at any time.
    spans = [
        (begins[0 if any(each.moves_on for each in pieces[:index]) else index], begins[index + 1])
        for index, piece in enumerate(pieces)
        if uses([piece], "on_policy")
    ]
    later = [Fraction(number, rounds) for number in range(1, rounds)]
    renews = [place for place in later if any(a < place + Fraction(1, rounds) and b > place for a, b in spans)]
    return Fraction(0), *renews


def _within(piece: SchedulePiece, start: float, until: float, progress: float) -> ModeWeights:
    """Returns the weights at a progress within `[start, until)` of a piece.

    A moving piece goes from its own weights to `to`: `w = a + (b - a) * f(x)` with x the share of the piece that is done,
    `f(x) = x` (linear) or `(1 - cos(pi x)) / 2` (cosine).
    """
    if piece.to is None:
        return weights_of(piece)
    done = min(1.0, (progress - start) / (until - start))
    share = done if piece.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    return ModeWeights(*(a + (b - a) * share for a, b in zip(weights_of(piece), weights_of(piece.to), strict=True)))


class Schedule:
    """A schedule over the updates of a run, with the pieces that have ended early so far.

    A piece ends early after the update at which `before - latest < min_gain * before`, with `latest` the mean of its last
    `window_steps` inference-mode losses and `before` the mean of as many before them. The pieces after it are then stretched over
    the remaining updates, in proportion. A moving piece that ends early has kept its pace: it does not reach `to`.

    Args:
        pieces: checked pieces of a recipe.
        num_steps: updates of the run.
    """

    def __init__(self, pieces: Sequence[SchedulePiece], num_steps: int):
        self.pieces, self.num_steps = tuple(pieces), num_steps
        self.load_state_dict({"ended_early": [], "piece": 0, "losses": []})

    def weights(self, step: int) -> ModeWeights:
        """Returns the weights of an update, by the boundaries known so far; those of past updates do not change."""
        progress = step / self.num_steps
        index = self._index(progress)
        return _within(self.pieces[index], self._start(index), self._planned[index], progress)

    def piece(self, step: int) -> tuple[int, int, int]:
        """Returns the piece of an update: its index, its first update, and one past its last as known so far."""
        index = self._index(step / self.num_steps)
        return index, self._first_step(self._start(index)), self._first_step(self._ends[index])

    def observe(self, step: int, ce_inference_nats: float | None) -> bool:
        """Records the loss of a completed update.

        Args:
            step: the update's number; updates are recorded in order.
            ce_inference_nats: mean cross-entropy of the inference mode in nats per token; None if the update had no such tokens.
                A value that is not finite counts as None.

        Returns:
            Whether the piece ended early with this update: update `step + 1` is the first of the next piece.
        """
        index, _, end = self.piece(step)
        plateau = self.pieces[index].moves_on
        if plateau is None or step + 1 >= end:
            return False
        if index != self._watched:
            self._watched, self._losses = index, []
        if ce_inference_nats is None or not math.isfinite(ce_inference_nats):
            return False
        self._losses = [*self._losses, ce_inference_nats][-2 * plateau.window_steps :]
        if not _has_stopped(self._losses, plateau):
            return False
        self._end_early(index, step + 1)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Returns the state derived from losses, in JSON form: `ended_early` as pairs of a piece and the update it ended before."""
        return {
            "ended_early": [list(pair) for pair in self._early],
            "piece": self._watched,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a schedule with the same pieces and updates."""
        # Exact decimal fractions: with binary ones, a stretched piece until 0.8 would end one update too late.
        self._exact = [Fraction(repr(piece.until)) for piece in self.pieces]
        self._ends = [float(end) for end in self._exact]
        # Ends to which moving pieces are interpolated. Unlike `_ends`, a piece's own early end does not change its entry.
        self._planned = list(self._ends)
        self._early: list[list[int]] = []
        for index, step in state["ended_early"]:
            self._end_early(index, step)
        self._watched, self._losses = state["piece"], list(state["losses"])

    def _end_early(self, index: int, step: int) -> None:
        """Ends a piece before an update, and stretches those after it."""
        self._early.append([index, step])
        start, stretched = Fraction(step, self.num_steps), 1 - self._exact[index]
        for later in range(index + 1, len(self.pieces)):
            self._exact[later] = 1 - (1 - self._exact[later]) * (1 - start) / stretched
            self._ends[later] = self._planned[later] = float(self._exact[later])
        self._exact[index], self._ends[index] = start, float(start)

    def _index(self, progress: float) -> int:
        return next((i for i, end in enumerate(self._ends) if progress < end), len(self.pieces) - 1)

    def _start(self, index: int) -> float:
        return self._ends[index - 1] if index else 0.0

    def _first_step(self, progress: float) -> int:
        """Returns the first update at or after a progress; `progress * num_steps` alone may be rounded up to the next update."""
        step = max(0, math.ceil(progress * self.num_steps) - 1)
        while step / self.num_steps < progress:
            step += 1
        return step


def _has_stopped(losses: Sequence[float], plateau: Plateau) -> bool:
    """Returns whether there are two full windows, and the later one improves too little on the earlier one."""
    if len(losses) < 2 * plateau.window_steps:
        return False
    before, latest = (fmean(part) for part in (losses[: plateau.window_steps], losses[plateau.window_steps :]))
    return before - latest < plateau.min_gain * before
