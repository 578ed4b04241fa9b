"""What `dtype: auto` is on a CPU, and the memory that an engine is expected to take."""

import json

import pytest

from profuser.engines import processor
from profuser.engines.memory import engine_bytes
from profuser.engines.processor import LEAST_BYTES, bfloat16_flag, cpu_dtype
from profuser.models.checkpoint import Checkpoint

GIB = 2**30


def checkpoint(**changes):
    settings = {"dtype": "bfloat16", "weights_bytes": LEAST_BYTES, "vocab_size": 1000, "is_quantized": False}
    return Checkpoint(**(settings | changes))


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu sse2 avx512f avx512_bf16 amx_tile", "avx512_bf16"),
        ("fpu avx512_bf16 amx_bf16 amx_tile", "amx_bf16"),
        ("fpu avx2 avx512f avx512_vnni", None),
        ("", None),
    ],
)
def test_the_processors_flags_are_read(tmp_path, monkeypatch, flags, found):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\nbugs\t\t:\n" * 2)
    monkeypatch.setattr(processor, "CPUINFO", file)
    assert bfloat16_flag() == found
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert bfloat16_flag() is None


@pytest.mark.parametrize(
    ("model", "flag", "dtype"),
    [
        (checkpoint(), "avx512_bf16", "bfloat16"),
        (checkpoint(), None, "float32"),
        (checkpoint(weights_bytes=LEAST_BYTES - 1), "amx_bf16", "float32"),
        (checkpoint(weights_bytes=None), "amx_bf16", "bfloat16"),
        (checkpoint(dtype="float32"), "avx512_bf16", "float32"),
        (checkpoint(dtype="float16"), "avx512_bf16", "float32"),
    ],
)
def test_only_large_checkpoints_in_bfloat16_run_in_it(model, flag, dtype):
    assert cpu_dtype(model, flag) == dtype


@pytest.mark.parametrize(
    ("config", "dtype", "vocab_size"),
    [
        ({"dtype": "bfloat16", "vocab_size": 7}, "bfloat16", 7),
        ({"torch_dtype": "float16", "vocab_size": 7}, "float16", 7),
        ({"torch_dtype": "torch.bfloat16", "vocab_size": 7}, "bfloat16", 7),
        ({"text_config": {"dtype": "bfloat16", "vocab_size": 9}}, "bfloat16", 9),
        ({}, "float32", 0),
    ],
)
def test_a_checkpoint_is_read_from_its_files(tmp_path, config, dtype, vocab_size):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, size in {"a.safetensors": 30, "b.safetensors": 12, "pytorch_model.bin": 42, "tokenizer.json": 99}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert Checkpoint.of(str(tmp_path)) == Checkpoint(dtype, 42, vocab_size, False)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    assert Checkpoint.of(str(tmp_path)) == Checkpoint(dtype, 42, vocab_size, True)
    (tmp_path / "pytorch_model.bin").unlink()
    assert Checkpoint.of(str(tmp_path)).weights_bytes is None


def test_the_memory_of_an_engine_grows_with_weights_type_cache_and_vocabulary():
    small = engine_bytes(checkpoint(), "bfloat16", 1.0)
    assert engine_bytes(checkpoint(), "bfloat16", 1.5) - small == GIB // 2
    assert engine_bytes(checkpoint(), "float32", 1.0) - small == LEAST_BYTES
    assert engine_bytes(checkpoint(is_quantized=True), "float32", 1.0) == small
    assert engine_bytes(checkpoint(weights_bytes=3 * LEAST_BYTES), "bfloat16", 1.0) - small == 2 * LEAST_BYTES
    assert engine_bytes(checkpoint(vocab_size=2000), "bfloat16", 1.0) > small
    assert engine_bytes(checkpoint(weights_bytes=None), "bfloat16", 1.0) is None


@pytest.mark.parametrize(
    ("weights_bytes", "vocab_size", "dtype", "measured_gib"),
    [
        (269_060_552, 49_152, "float32", 2.81),  # SmolLM2 135M
        (269_060_552, 49_152, "bfloat16", 2.25),
        (536_223_056, 262_144, "bfloat16", 4.48),  # Gemma 3 270M
    ],
)
def test_the_estimate_is_not_far_above_measured_peaks_and_not_below(weights_bytes, vocab_size, dtype, measured_gib):
    """Peaks of vLLM's process with 1 GiB of KV cache, over rows of 220 tokens; longer rows take more."""
    model = checkpoint(weights_bytes=weights_bytes, vocab_size=vocab_size)
    assert measured_gib <= engine_bytes(model, dtype, 1.0) / GIB <= 1.25 * measured_gib
