"""The Transformers engine against bare calls of the same model, and transport against the speed of a source on a GPU."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profuser.engines.base import Request
from profuser.engines.transformers import TransformersEngine
from profuser.models.lab_paths import assets_path
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig
from tests.benchmarks.gpu.device import DEVICE, DTYPE, GPU, Sizes, free, llama, now, seconds_of
from tests.benchmarks.measure import Row, by_turns

K, ROWS, PROMPT, RESPONSE = 10, 16, 64, 192


def saved(shape: Any, folder: str) -> str:
    """Saves a random Llama in a folder, with a laboratory tokenizer (fewer tokens than logits)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(llama(shape), dtype=DTYPE)
    # No token ends a turn, so all answers have the same length.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(assets_path() / "sources" / "llama").save_pretrained(folder)
    return folder


def engine(sizes: Sizes) -> Iterator[Row]:
    """Measures teacher forcing and generation with the top-10, in one batch."""
    rng = np.random.default_rng(0)
    num_new = RESPONSE if GPU else 8
    with tempfile.TemporaryDirectory() as folder:
        made = TransformersEngine(saved(sizes.engine, folder), None, EngineConfig(kind="transformers"))
    made.end_ids = []
    prompts = [rng.integers(3, made.vocab_size, PROMPT).tolist() for _ in range(ROWS)]
    responses = [rng.integers(3, made.vocab_size, num_new).tolist() for _ in range(ROWS)]
    greedy = GenerationConfig(max_tokens=num_new)
    forced = [Request(prompt, K, given) for prompt, given in zip(prompts, responses, strict=True)]
    free_requests = [Request(prompt, K, generation=greedy, max_tokens=num_new) for prompt in prompts]
    whole = made._padded([p + r for p, r in zip(prompts, responses, strict=True)], left=False)
    alone = made._padded(prompts, left=True)

    def read(requests: list[Request]) -> None:
        for number, request in enumerate(requests):
            made.add(number, request)
        while made.waiting:
            made.step()

    @torch.inference_mode()
    def forward() -> None:
        made.model(**whole, use_cache=False)

    @torch.inference_mode()
    def generate() -> None:
        made.model.generate(**alone, max_new_tokens=num_new, do_sample=False, pad_token_id=0, eos_token_id=None)

    ways = {
        "forced": lambda: read(forced),
        "forward": forward,
        "free": lambda: read(free_requests),
        "generate": generate,
    }
    seconds = seconds_of(ways, sizes.rounds)
    rate = {"forced": ROWS * (PROMPT + num_new), "forward": ROWS * (PROMPT + num_new), "free": ROWS * num_new}
    rate |= {"generate": ROWS * num_new}
    rate = {name: rate[name] / seconds[name] for name in seconds}
    title = "Transformers engine, top-10"
    yield Row(
        f"{title}: teacher forcing, tokens/s, against a forward pass", rate["forced"], "/s", rate["forward"], ">= 0.9 x"
    )
    yield Row(f"{title}: generation, tokens/s, against generate", rate["free"], "/s", rate["generate"], ">= 0.9 x")
    del made
    free()


def transport(sizes: Sizes) -> Iterator[Row]:
    """Measures transport on one core against the reading rate of a 7B source: it must never be the bottleneck."""
    from transformers import AutoModelForCausalLM

    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(llama(sizes.source), dtype=DTYPE).eval()
    ids = torch.randint(3, 100, (8, 1024 if GPU else 16), device=DEVICE)
    with torch.inference_mode():
        model.base_model(input_ids=ids, use_cache=False)
        start = now()
        for _ in range(3):
            model.base_model(input_ids=ids, use_cache=False)
        source_rate = 3 * ids.numel() / (now() - start)
    del model
    free()
    name, rate = _transport_rate()
    title = f"transport of top-10, {name}: tokens/s of a core, against those that a 7B source reads"
    yield Row(title, rate, "/s", source_rate, ">= 1 x")


def _transport_rate() -> tuple[str, float]:
    """Returns tokens per second of transport between released tokenizers if available, else between laboratory ones."""
    from profuser.alignment.token_bytes import TokenBytes
    from profuser.alignment.transport import transport_rows
    from profuser.alignment.vocab_projection import VocabProjection
    from tests.benchmarks.signals import Side, responses, signals

    try:
        from tests.real_tokenizers import sentencepiece, tekken

        pair, name = (tekken(), sentencepiece()), "Tekken 131,072 to SentencePiece 32,000"
    except ImportError:
        from transformers import AutoTokenizer

        places = [Path(assets_path()) / "sources" / each for each in ("neox", "llama")]
        pair = tuple(AutoTokenizer.from_pretrained(place) for place in places)
        name = "laboratory tokenizers"
    source, target = (Side(each, TokenBytes.from_tokenizer(each, len(each))) for each in pair)
    texts = responses()[: 4000 if GPU else 100]
    given, goals, raw = signals(source.encode(texts)), target.encode(texts), [text.encode() for text in texts]
    projection = VocabProjection.build(source.tokens, target.tokens)
    seconds = by_turns({"ours": lambda: transport_rows(given, goals, raw, projection)}, rounds=3)
    return name, len(goals.values) / seconds["ours"]
