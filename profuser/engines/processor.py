"""Chooses the type in which a checkpoint runs on this machine's processor."""

from pathlib import Path

from profuser.models.checkpoint import Checkpoint

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Flags of processors that multiply bfloat16 numbers, best first."""
LEAST_BYTES = 16 << 20
"""Size of a checkpoint from which it runs in bfloat16. Smaller ones, such as the laboratory's, are fast in any type."""


def bfloat16_flag() -> str | None:
    """Returns the flag by which this machine's processor says that it multiplies bfloat16 numbers; None if it does not."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return next((flag for flag in BFLOAT16_FLAGS if flag in flags), None)


def cpu_dtype(checkpoint: Checkpoint, flag: str | None) -> str:
    """Returns what `dtype: auto` is on a CPU: bfloat16 for a checkpoint in bfloat16 of at least `LEAST_BYTES` on a processor with
    such a flag, else float32.

    `python -m tests.benchmarks dtype` measures both types.
    """
    large = checkpoint.weights_bytes is None or checkpoint.weights_bytes >= LEAST_BYTES
    return "bfloat16" if flag and large and checkpoint.dtype == "bfloat16" else "float32"
