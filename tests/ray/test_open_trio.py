"""The shipped recipe of three released models, whole, on small copies of their configurations with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from profuser.run.finding import find_run
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
PROFUSER = Path(sys.executable).parent / "profuser"
PARTS = ("math", "general", "code")
NUM_ROWS, NUM_HELDOUT = 12, 6
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # heads of 32, the smallest that vLLM serves on a CPU
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a folder per source: a Llama, a Qwen2 and a Gemma 3 with three tokenizers, tied embeddings and grouped queries."""
    folder = tmp_path_factory.mktemp("models")
    gemma = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}
    kinds = {
        "smollm2": (LlamaForCausalLM, LlamaConfig, tiny.byte_level_tokenizer(400), {}),
        "qwen": (Qwen2ForCausalLM, Qwen2Config, tiny.byte_level_tokenizer(480), {}),
        "gemma": (Gemma3ForCausalLM, Gemma3TextConfig, tiny.sentencepiece_tokenizer(), gemma),
    }
    for seed, (name, (kind, config, tokenizer, own)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        # Wider than the tokenizer, as the released ones are.
        tiny.save(kind(config(vocab_size=len(tokenizer) + 16, **SHAPE, **own)), tokenizer, folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns a file per part, in the shape of its corpus."""
    folder = tmp_path_factory.mktemp("data")
    rows = range(NUM_ROWS + 4)
    math = [{"question": f"{n} and {n}?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"} for n in rows]
    general = [{"instruction": f"Sort {n} b a", "input": "", "output": f"a b {n}"} for n in rows]
    code = [{"instruction": "Print it", "input": f"{n}", "output": f"print({n})"} for n in rows]
    (folder / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in math))
    (folder / "general.json").write_text(json.dumps(general))
    (folder / "code.json").write_text(json.dumps(code))
    return folder


def settings(models, data, storage):
    """Returns the settings that put folders in place of the Hub, and make everything small."""
    files = {"math": "math.jsonl", "general": "general.json", "code": "code.json"}
    made = {f"corpus.parts.{part}.path": data / file for part, file in files.items()}
    made |= {f"corpus.parts.{part}.max_rows": NUM_ROWS for part in PARTS}
    places = {"target": "smollm2"} | {f"sources.{name}": name for name in ("smollm2", "qwen", "gemma")}
    for key, name in places.items():
        made |= {f"{key}.model": models / name, f"{key}.revision": "null"}
        made |= {f"{key}.engine.kind": "transformers", f"{key}.engine.max_model_len": 256}
    # Random weights answer nothing that a verifier accepts.
    made |= {f"rewards.{name}.accept_above": "null" for name in ("number", "chrf")}
    made |= {
        "storage": storage,
        "corpus.heldout_rows": NUM_HELDOUT,
        "collect.sources_at_once": 3,
        "evaluate.judged": "false",
        "collect.generation.max_tokens": 12,
        "evaluate.generation.max_tokens": 12,
        "fuse.duration.value": 2,
        "fuse.batch_tokens": 2048,
        "fuse.max_tokens": 256,
    }
    return [part for key, value in made.items() for part in ("--set", f"{key}={value}")]


def test_the_demo_of_released_models_ends_with_a_report_by_part_and_an_answer(models, data, tmp_path):
    command = [PROFUSER, "demo", "open-trio-demo", *settings(models, data, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "warn" not in (done.stdout + done.stderr).lower()
    assert "The fused model, served at http://127.0.0.1" in done.stdout
    run = find_run("open-trio-demo", str(tmp_path))
    tables = [table for artifact in (run.corpus(), run.heldout()) for table in artifact.tables()]
    assert sorted(row["category"] for table in tables for row in table.to_pylist()) == sorted(PARTS * NUM_ROWS)
    page = run.report().folder.read_bytes("index.html").decode()
    assert all(part in page for part in PARTS)
    numbers = run.rewards(run.recipe.rewards[0]).manifest().counts
    assert numbers["answers_not_judged"] > numbers["answers"]
