"""Teacher forcing by one vLLM engine on a CPU, in bfloat16 and in float32: what `dtype: auto` chooses between.

`python -m tests.benchmarks.bench_dtype FOLDER` is the separate process in which both engines run, on all cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from profuser.engines.base import Request
from profuser.engines.processor import bfloat16_flag
from profuser.engines.vllm import VllmEngine
from profuser.recipe.engine import EngineConfig
from tests import tiny
from tests.benchmarks.bench_extraction import flat
from tests.benchmarks.measure import Row, by_turns

K, NUM_REQUESTS, PROMPT_TOKENS, RESPONSE_TOKENS, ROUNDS = 10, 16, 100, 120, 5
SHAPES: dict[str, dict[str, Any]] = {
    "147M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "47M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 6},
}
"""Llamas with random weights: the first is about as large as SmolLM2 135M."""
NUM_TOKENS = 49_152


def make_model(folder: Path, size: str) -> str:
    """Writes a Llama of that size in bfloat16, with a vocabulary as large as SmolLM2's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=NUM_TOKENS, max_position_embeddings=1024, tie_word_embeddings=True, **SHAPES[size])
    model: Any = LlamaForCausalLM(config)
    return tiny.save(model.to(torch.bfloat16), tiny.byte_level_tokenizer(), folder)


def measure(path: str) -> dict[str, float]:
    """Returns the seconds in each type, taken in turns."""
    rng = np.random.default_rng(0)
    rows = rng.integers(300, NUM_TOKENS, (NUM_REQUESTS, PROMPT_TOKENS + RESPONSE_TOKENS)).tolist()
    requests = [Request(row[:PROMPT_TOKENS], K, row[PROMPT_TOKENS:]) for row in rows]
    engines = {
        dtype: VllmEngine(path, None, EngineConfig.model_validate({"dtype": dtype, "max_model_len": 256}))
        for dtype in ("bfloat16", "float32")
    }
    return by_turns({dtype: partial(flat, engine, requests) for dtype, engine in engines.items()}, ROUNDS)


def run() -> list[Row]:
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SHAPES:
            path = make_model(Path(folder) / size, size)
            command = [sys.executable, "-m", "tests.benchmarks.bench_dtype", path]
            environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            num_tokens = NUM_REQUESTS * (PROMPT_TOKENS + RESPONSE_TOKENS)
            rate = {dtype: num_tokens / seconds for dtype, seconds in found.items()}
            title = f"teacher forcing in bfloat16, {size} parameters, against float32"
            # A processor without such products need not be faster: `auto` chooses float32 there.
            out.append(Row(title, rate["bfloat16"], "tokens/s", rate["float32"], ">= 1 x" if bfloat16_flag() else ""))
    return out


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
