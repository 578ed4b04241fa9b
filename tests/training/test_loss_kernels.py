"""The Triton kernels of the loss: in Triton's interpreter if Triton is installed, and on a GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from profuser.training import loss_kernels
from tests.training.test_losses import loss_of, make

KERNELS = Path(sys.prefix) / "kernels"
"""Folder of Triton from `make setup` on a machine without a GPU: on the global path it would only cause warnings."""


def test_the_kernels_equal_pytorch():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(KERNELS), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run([sys.executable, "-c", "import triton"], capture_output=True, env=env)
    if found.returncode:
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "tests.training.kernels_in_interpreter"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout == "60 cases agree\n", done.stderr[-3000:]


def test_planning_a_gpus_memory_needs_no_gpu():
    """With tensors without values: logits of a chunk have the products' type, and no full product exists beside the sum."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from profuser.training.live_bytes import LiveBytes

    peaks = []
    for kernels in (True, False):
        with FakeTensorMode(), LiveBytes("loss") as live:
            inputs = [x.detach().to(torch.bfloat16) if x.is_floating_point() else x for x in make(n=64, d=64, v=512)]
            for each in inputs[:2]:
                each.requires_grad_()
            live.reset()
            loss_of(*inputs, chunk_tokens=32, kernels=kernels).total.backward()
        peaks.append(live.fullest.total() - 2 * 64 * (64 + 512))
    assert peaks[0] < 0.85 * peaks[1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_equal_pytorch_on_a_gpu(dtype):
    inputs = [x.detach().cuda().to(dtype if x.is_floating_point() else x.dtype) for x in make(n=300, d=64, v=9000, k=8)]
    for each in inputs[:2]:
        each.requires_grad_()
    assert loss_kernels.kernels_supported(inputs[0].device)
    grads = [torch.autograd.grad(loss_of(*inputs, kernels=way).total, inputs[:2]) for way in (True, False)]
    for a, b in zip(*grads, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02
