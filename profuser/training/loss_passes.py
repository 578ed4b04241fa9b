"""The fusion loss's passes over the logits of one chunk, in plain PyTorch and with custom kernels.

Legend: n tokens of the chunk, V vocabulary, m selected columns of a row.

    z = cap(scale * (logits + bias)),  cap(x) = softcap * tanh(x / softcap) or x;      log q = log_softmax(z)
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from profuser.training import loss_kernels


@runtime_checkable
class Passes(Protocol):
    """Created from a chunk's logits, whose memory it takes over."""

    def log_probs(self, places: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Returns log q at the selected columns of each row."""
        ...

    def gradient(
        self, coefficient: Float[Tensor, "n"], places: Int[Tensor, "n m"], values: Float[Tensor, "n m"]
    ) -> Float[Tensor, "n V"]:
        """Returns the gradient with respect to the logits, in their memory; `log_probs` must not be called after it.

        Args:
            coefficient: the gradient in z is `coefficient * q` except at `places`.
            places: selected columns; a column may occur twice, with the same value.
            values: the gradient in z at `places`.
        """
        ...


class PlainPasses:
    """PyTorch's own functions, in float32 (float64 for float64), with the fewest passes."""

    def __init__(
        self, logits: Float[Tensor, "n V"], bias: Float[Tensor, "V"] | None, scale: float, softcap: float | None
    ):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if bias is not None:
            z += bias
        self.slope = _bend(z, scale, softcap)
        self.table = torch.log_softmax(z, -1, out=z)

    def log_probs(self, places: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """See `Passes`."""
        return self.table.gather(1, places)

    def gradient(
        self, coefficient: Float[Tensor, "n"], places: Int[Tensor, "n m"], values: Float[Tensor, "n m"]
    ) -> Float[Tensor, "n V"]:
        """See `Passes`."""
        grad = self.table.exp_().mul_(coefficient[:, None]).scatter_(1, places, values)
        return grad if self.slope is None else grad.mul_(self.slope)


class KernelPasses:
    """Two kernels, in the type of the products, with float32 arithmetic."""

    def __init__(
        self, logits: Float[Tensor, "n V"], bias: Float[Tensor, "V"] | None, scale: float, softcap: float | None
    ):
        self.logits = logits if bias is None else logits.add_(bias)
        self.scale, self.softcap = scale, softcap or 0.0
        self.lse = loss_kernels.logsumexp(self.logits, self.scale, self.softcap)

    def _at(self, places: Int[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "*slope"]]:
        z = self.logits.gather(1, places).float()
        slope = _bend(z, self.scale, self.softcap or None)
        return z, z.new_ones(()) if slope is None else slope

    def log_probs(self, places: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """See `Passes`."""
        return self._at(places)[0] - self.lse[:, None]

    def gradient(
        self, coefficient: Float[Tensor, "n"], places: Int[Tensor, "n m"], values: Float[Tensor, "n m"]
    ) -> Float[Tensor, "n V"]:
        """See `Passes`."""
        values = values * self._at(places)[1]
        loss_kernels.softmax_gradient_(self.logits, self.lse, coefficient, self.scale, self.softcap)
        return self.logits.scatter_(1, places, values.to(self.logits.dtype))


def _bend(logits: Float[Tensor, "*shape"], scale: float, softcap: float | None) -> Float[Tensor, "*broadcast"] | None:
    """Scales and caps logits in place; returns the derivative, or None if there is neither scale nor cap."""
    if scale == 1 and softcap is None:
        return None
    logits *= scale
    if softcap is None:
        return logits.new_full((), scale)
    bent = logits.div_(softcap).tanh_()
    slope = (1 - bent.square()).mul_(scale)
    bent.mul_(softcap)
    return slope
