"""The measured device: its clock, its memory, and the sizes of the work."""

import gc
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

LEFT_OUT: list[str] = []
"""Variants that this device or environment cannot run, with the reason."""
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32


@dataclass(frozen=True)
class Sizes:
    """Sizes of the work: `FULL` for an 80 GB GPU, `TINY` for a CPU."""

    loss_tokens: int
    hidden_size: int
    vocab_sizes: tuple[int, ...]
    chunk_tokens: int
    pack_tokens: int
    """Longest sequence of packed examples, and tokens of a micro-batch."""
    targets: Mapping[str, Mapping[str, int]]
    """Llama configs, by their name in the table."""
    attention: Mapping[str, int]
    engine: Mapping[str, int]
    source: Mapping[str, int]
    rounds: int


LLAMA = {"rope_theta": 500_000.0, "tie_word_embeddings": True, "num_key_value_heads": 8}
FULL = Sizes(
    loss_tokens=16_384,
    hidden_size=4096,
    vocab_sizes=(128_256, 262_144),
    chunk_tokens=1024,
    pack_tokens=8192,
    targets={
        "1.2B": LLAMA
        | dict(
            vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32
        ),
        "3B": LLAMA
        | dict(
            vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24
        ),
    },
    attention=LLAMA
    | dict(vocab_size=32_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=16),
    engine=LLAMA
    | dict(vocab_size=151_936, hidden_size=1024, intermediate_size=4096, num_hidden_layers=20, num_attention_heads=16),
    source=LLAMA
    | dict(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32),
    rounds=3,
)
_SMALL = LLAMA | dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
TINY = Sizes(
    loss_tokens=64,
    hidden_size=32,
    vocab_sizes=(512, 700),
    chunk_tokens=16,
    pack_tokens=512,
    targets={"1.2B": _SMALL, "3B": _SMALL | {"vocab_size": 70_000}},
    attention=_SMALL,
    engine=_SMALL | {"vocab_size": 4096},
    source=_SMALL,
    rounds=1,
)


def llama(shape: Mapping[str, Any]) -> Any:
    """Returns a Llama config of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, **shape)


def sync() -> None:
    """Waits until the device is idle."""
    if GPU:
        torch.cuda.synchronize()


def free() -> None:
    """Frees unreferenced memory."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(way: Callable[[], object]) -> int:
    """Returns the peak growth of memory during a call: of the device, or of the process on a CPU."""
    if not GPU:
        from tests.benchmarks.measure import peak_bytes as of_process

        return of_process(way)
    free()
    before = torch.cuda.memory_allocated()
    way()
    sync()
    return torch.cuda.max_memory_allocated() - before


def seconds_of(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each way, run in turns. A way that cannot run here is added to `LEFT_OUT`."""
    from tests.benchmarks.measure import by_turns

    def whole(way: Callable[[], object]) -> Callable[[], object]:
        return lambda: (way(), sync())

    running = {}
    for name, way in ways.items():
        try:
            whole(way)()
        except (RuntimeError, ImportError, NotImplementedError) as error:
            LEFT_OUT.append(f"{name}: {reason(error)}")
            free()
        else:
            running[name] = whole(way)
    return by_turns(running, rounds)


def reason(error: BaseException) -> str:
    """Returns an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


@contextmanager
def process_group() -> Iterator[None]:
    """Creates a process group of only this process, for sharding, as in a worker of the stage."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def driver() -> str | None:
    """Returns the version of the GPU's driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def now() -> float:
    """Returns the seconds of a monotonic clock, once the device is idle."""
    sync()
    return time.perf_counter()
