"""The carried end of turn: its mass, its calibration, and the gain from calibrating it.

At each target position the carried mass of the target's end of turn is a forecast of "the turn ends here". It is compared with what
the target itself gives, and with the answer. A calibration maps the forecast's logit x to `b + x` (shift) or `a x + b`
(scale); it is fitted by maximum likelihood on half of the answers and judged on the other half, then the other way round. The
forecast is taken from 1,024 candidates, so that it is the source's and not the cut's; below `FLOOR` it counts as `FLOOR`.

Legend: N positions of all answers, R answers.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

FLOOR = 1e-6
EDGES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass
class Ends:
    """Forecasts of one pair, per answer."""

    carried: list[Float[np.ndarray, "T"]] = field(default_factory=list)
    target: list[Float[np.ndarray, "T"]] = field(default_factory=list)

    def add(self, carried: Float[np.ndarray, "T"], target: Float[np.ndarray, "T"]) -> None:
        """Adds an answer, which ends at its last position."""
        self.carried.append(np.clip(carried, FLOOR, 1 - FLOOR))
        self.target.append(np.clip(target, FLOOR, 1 - FLOOR))

    @property
    def ended(self) -> Bool[np.ndarray, "N"]:
        return np.concatenate([np.arange(len(row)) == len(row) - 1 for row in self.carried])

    @property
    def row_of(self) -> Int[np.ndarray, "N"]:
        return np.repeat(np.arange(len(self.carried)), [len(row) for row in self.carried])

    def reliability(self) -> list[dict[str, float]]:
        """Returns positions by carried mass: their number, its mean, the target's mean, and the share that ends there."""
        carried, target, ended = np.concatenate(self.carried), np.concatenate(self.target), self.ended
        out = []
        for low, high in pairwise(EDGES):
            chosen = (carried >= low) & (carried < high)
            if chosen.any():
                means = [float(each[chosen].mean()) for each in (carried, target, ended)]
                out.append({"from": low, "to": high, "positions": int(chosen.sum())})
                out[-1] |= dict(zip(("carried", "target", "ended"), means, strict=True))
        return out

    def at_ends(self) -> dict[str, float]:
        """Returns mean masses where answers end, and where the target would rather continue; mean difference elsewhere."""
        carried, target, ended = np.concatenate(self.carried), np.concatenate(self.target), self.ended
        goes_on = ended & (target < 0.5)
        found: dict[str, float] = {"ends": int(ended.sum()), "ends where the target goes on": int(goes_on.sum())}
        for name, chosen in (("at ends", ended), ("where the target goes on", goes_on), ("elsewhere", ~ended)):
            for side, values in (("carried", carried), ("target", target)):
                found[f"{side} {name}"] = float(values[chosen].mean()) if chosen.any() else float("nan")
        return found

    def bits(self) -> dict[str, Float[np.ndarray, "R"]]:
        """Returns the bits per answer of "the turn ends here" over its positions: carried, calibrated, and by the target itself."""
        x, ended, row_of = _logit(np.concatenate(self.carried)), self.ended, self.row_of
        forecasts = {"as carried": x, "target": _logit(np.concatenate(self.target))}
        for name, scaled in (("shift", False), ("scale", True)):
            forecasts[name] = np.empty_like(x)
            for half in (0, 1):
                tested = row_of % 2 == half
                a, b = fit(x[~tested], ended[~tested], scaled)
                forecasts[name][tested] = a * x[tested] + b
        num = len(self.carried)
        return {name: np.bincount(row_of, _bits(each, ended), num) for name, each in forecasts.items()}


def fit(x: Float[np.ndarray, "N"], ended: Bool[np.ndarray, "N"], scaled: bool) -> tuple[float, float]:
    """Fits maximum-likelihood `a` and `b` of `P(end) = 1 / (1 + exp(-(a x + b)))` by Newton's method; `a` is 1 unless scaled."""
    features = np.stack([np.ones_like(x), x], axis=1)[:, : 2 if scaled else 1]
    offset = 0.0 if scaled else x
    weights = np.array([0.0, 1.0])[: features.shape[1]]
    for _ in range(100):
        p = 1 / (1 + np.exp(-(features @ weights + offset)))
        gradient = features.T @ (ended - p)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + 1e-9 * np.eye(features.shape[1])
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return (float(weights[1]) if scaled else 1.0), float(weights[0])


def _logit(p: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    return np.log(p) - np.log1p(-p)


def _bits(x: Float[np.ndarray, "N"], ended: Bool[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    return np.logaddexp(0.0, np.where(ended, -x, x)) / np.log(2)
