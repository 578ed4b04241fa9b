"""Progressive schedules: the weights of the two modes as a function of training progress.

A schedule is data: pieces over progress 0..1, each with the weights `(w1, w2)` of inference and training mode at its start
and end. Paper: `L = w1 * L_infer + w2 * L_train`, first `(1, 0)`, then `(0.1, 1)` (arXiv 2408.04998).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from profuser.config import Config


class ModeWeights(NamedTuple):
    """Weights of the losses of both modes at one moment."""

    inference: float
    training: float


class Weights(Config):
    """A pair of weights in a recipe."""

    inference: float = Field(ge=0)
    training: float = Field(ge=0)


class SchedulePiece(Config):
    """A stretch of the run: it ends where `until` says and starts where the piece before it ended."""

    until: float = Field(gt=0, le=1)
    """Progress at which this piece ends, as a share of all updates."""
    inference: float = Field(ge=0)
    """Weight of the inference-mode loss (at the start, for a moving piece)."""
    training: float = Field(ge=0)
    """Weight of the training-mode loss (at the start, for a moving piece)."""
    shape: Literal["constant", "linear", "cosine"] = "constant"
    """How the weights move towards `to`."""
    to: Weights | None = None
    """Weights at the end of a moving piece."""


PROGRESSIVE: tuple[SchedulePiece, ...] = (
    SchedulePiece(until=0.5, inference=1.0, training=0.0),
    SchedulePiece(until=1.0, inference=0.1, training=1.0),
)


def check_pieces(pieces: Sequence[SchedulePiece]) -> None:
    """Raises ValueError unless the pieces cover 0..1 in order, move only where they say to, and always weigh something."""
    if not pieces or pieces[-1].until != 1.0:
        raise ValueError("schedule: the last piece must have until: 1.0")
    start = 0.0
    for index, piece in enumerate(pieces):
        if piece.until <= start:
            raise ValueError(f"schedule[{index}]: until={piece.until} does not come after {start}")
        if (piece.shape == "constant") != (piece.to is None):
            raise ValueError(f"schedule[{index}]: shape {piece.shape!r} {'takes no' if piece.to else 'needs a'} `to`")
        if piece.inference + piece.training == 0 and (piece.to is None or piece.to.inference + piece.to.training == 0):
            raise ValueError(f"schedule[{index}]: both weights are 0: nothing would be learnt")
        start = piece.until


def weights_at(pieces: Sequence[SchedulePiece], progress: float) -> ModeWeights:
    """The weights at a progress in [0, 1); a piece covers `[start, until)`.

    A moving piece goes from its own weights to `to`: `w = a + (b - a) * f(x)` with x the share of the piece that is done,
    `f(x) = x` (linear) or `(1 - cos(pi x)) / 2` (cosine).
    """
    start = 0.0
    for piece in pieces:
        if progress < piece.until or piece.until == 1.0:
            if piece.to is None:
                return ModeWeights(piece.inference, piece.training)
            done = min(1.0, (progress - start) / (piece.until - start))
            share = done if piece.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
            return ModeWeights(
                piece.inference + (piece.to.inference - piece.inference) * share,
                piece.training + (piece.to.training - piece.training) * share,
            )
        start = piece.until
    raise ValueError("a schedule has no pieces")


def stage_boundaries(pieces: Sequence[SchedulePiece]) -> list[float]:
    """Progress values at which one piece gives way to the next, for plots."""
    return [piece.until for piece in pieces[:-1]]
