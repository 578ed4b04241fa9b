"""Simple reference implementation of a schedule's weights without early ends."""

import math

from profuser.recipe.schedule import ModeWeights


def weights_at(pieces, progress):
    """Returns the weights at a progress. A piece covers `[start, until)`, the last one also its end."""
    start = 0.0
    for piece in pieces:
        if progress < piece.until or piece.until == 1.0:
            done = min(1.0, (progress - start) / (piece.until - start))
            share = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[piece.shape]
            end = piece.to or piece
            return ModeWeights(
                piece.inference + (end.inference - piece.inference) * share,
                piece.training + (end.training - piece.training) * share,
                piece.preference + (end.preference - piece.preference) * share,
                piece.on_policy + (end.on_policy - piece.on_policy) * share,
            )
        start = piece.until
    raise ValueError("a schedule has no pieces")
