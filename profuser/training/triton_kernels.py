"""Triton kernels of `profuser.training.loss_kernels`; imported only by that module, and only where they can run.

Legend: n tokens of a chunk, V vocabulary. `x` is `[n, V]`, row i starts at element `i * stride`; all arithmetic is in float32.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def bend(x, scale, softcap, capped: tl.constexpr):
    """Returns `softcap * tanh(scale * x / softcap)` if capped, else `scale * x`."""
    z = x * scale
    if capped:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
    return z


@triton.jit
def logsumexp(x, out, width: tl.constexpr, stride, scale, softcap, capped: tl.constexpr, size: tl.constexpr):
    """One program per row: the running maximum and the sum of exponentials below it, block by block."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, size)
    highest = -float("inf")
    total = 0.0
    for start in range(0, width, size):
        inside = start + columns < width
        z = bend(
            tl.load(x + row * stride + start + columns, mask=inside, other=0.0).to(tl.float32), scale, softcap, capped
        )
        z = tl.where(inside, z, -float("inf"))
        higher = tl.maximum(highest, tl.max(z, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), 0)
        highest = higher
    tl.store(out + row, highest + tl.log(total))


@triton.jit
def gradient(
    x, lse, coefficient, width: tl.constexpr, stride, scale, softcap, capped: tl.constexpr, size: tl.constexpr
):
    """One program per row and block: overwrites x with `coefficient * exp(z - lse) * dz/dx`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * size + tl.arange(0, size)
    inside = columns < width
    place = x + row * stride + columns
    z = bend(tl.load(place, mask=inside, other=0.0).to(tl.float32), scale, softcap, capped)
    out = tl.exp(z - tl.load(lse + row)) * tl.load(coefficient + row) * scale
    if capped:
        out = out * (1 - (z / softcap) * (z / softcap))
    tl.store(place, out.to(x.dtype.element_ty), mask=inside)
