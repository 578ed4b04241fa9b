"""The fusion loss's operations over a whole vocabulary on a GPU: two passes as Triton kernels, and products added to a float32 sum.

They are PyTorch operators, so that memory planning can run them on tensors without values, on machines without a GPU or Triton.

Legend: n tokens of a chunk, V vocabulary, D hidden size.
"""

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BLOCK, NUM_WARPS = 4096, 8
"""Logits that a kernel program reads at a time, and its warps."""


def kernels_supported(device: torch.device) -> bool:
    """Returns whether losses on this device use the kernels; True also when planning for GPUs on a machine without one."""
    planned = not torch.cuda.is_available()
    return device.type == "cuda" and (planned or importlib.util.find_spec("triton") is not None)


def _kernels() -> Any:
    """Imports the module that needs Triton, which only PyTorch's GPU builds include."""
    from profuser.training import triton_kernels

    return triton_kernels


@torch.library.custom_op("profuser::logsumexp", mutates_args=())
def logsumexp(logits: Tensor, scale: float, softcap: float) -> Tensor:
    """Returns the log of the sum of `exp(z)` over each row of `[n, V]`, with z the scaled and capped logits; float32 `[n]`.

    Args:
        logits: in any type.
        scale: factor of all logits.
        softcap: z is `softcap * tanh(scale * logit / softcap)`; 0 for no cap.
    """
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    inputs = logits, out, logits.shape[1], logits.stride(0), scale, softcap or 1.0
    _kernels().logsumexp[(len(logits),)](*inputs, capped=softcap > 0, size=BLOCK, num_warps=NUM_WARPS)
    return out


@logsumexp.register_fake
def _(logits: Tensor, scale: float, softcap: float) -> Tensor:
    return torch.empty(len(logits), dtype=torch.float32, device=logits.device)


@torch.library.custom_op("profuser::softmax_gradient_", mutates_args=("logits",))
def softmax_gradient_(logits: Tensor, lse: Tensor, coefficient: Tensor, scale: float, softcap: float) -> None:
    """Overwrites the logits with `coefficient[i] * exp(z[i, j] - lse[i]) * dz/dlogit`.

    Args:
        logits: `[n, V]`.
        lse: output of `logsumexp`, `[n]`.
        coefficient: float32 `[n]`.
        scale: as for `logsumexp`.
        softcap: as for `logsumexp`.
    """
    num_rows, width = logits.shape
    grid = num_rows, -(-width // BLOCK)
    inputs = logits, lse, coefficient, width, logits.stride(0), scale, softcap or 1.0
    _kernels().gradient[grid](*inputs, capped=softcap > 0, size=BLOCK, num_warps=NUM_WARPS)


@softmax_gradient_.register_fake
def _(logits: Tensor, lse: Tensor, coefficient: Tensor, scale: float, softcap: float) -> None:
    return None


@torch.library.custom_op("profuser::add_product_", mutates_args=("total",))
def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds `a @ b` to a float32 total in place, without materialising the product if this PyTorch supports it.

    Args:
        total: `[V, D]`.
        a: `[V, n]`, of a lower precision.
        b: `[n, D]`, as `a`.
    """
    if _adds_in_place(total.device):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


@add_product_.register_fake
def _(total: Tensor, a: Tensor, b: Tensor) -> None:
    return None


@lru_cache(maxsize=8)
def _adds_in_place(device: torch.device) -> bool:
    """Tests whether products of bfloat16 can be added to float32 (PyTorch 2.12 and later, on GPUs)."""
    low = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    total = torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, low, low, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17).all())
