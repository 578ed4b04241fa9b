"""Teacher forcing with top-10 by one vLLM engine of a laboratory source, into arrays: our extraction, and from nested dicts.

`python -m tests.benchmarks.bench_extraction` is the separate process in which both ways run, on one core.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from profuser.corpus import prepare_rows, read_corpus
from profuser.corpus.prepare import CorpusRow
from profuser.engines.base import Request
from profuser.engines.vllm import VllmEngine
from profuser.models.lab_paths import assets_path
from profuser.recipe.engine import EngineConfig
from tests.benchmarks.measure import Row, by_turns

K, NUM_REQUESTS, PROMPT_TOKENS, RESPONSE_TOKENS = 10, 128, 12, 240
ONE_CORE = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Threads that wait for each other slow the engine down on a busy machine, but not the Python that reads dicts: 1.9 to 4.6 x."""
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Log-probabilities of a response's tokens, candidates, and log-probabilities of these."""


def flat(engine: VllmEngine, requests: Sequence[Request]) -> list[Arrays]:
    """Extracts into arrays, as `collect` does."""
    for number, request in enumerate(requests):
        engine.add(number, request)
    found: dict[int, Any] = {}
    while len(found) < len(requests):
        found.update(engine.step())
    responses = [found[number] for number in range(len(requests))]
    return [(response.logprobs, response.topk.ids, response.topk.logprobs) for response in responses]


def nested(engine: VllmEngine, requests: Sequence[Request]) -> list[Arrays]:
    """Extracts as in vLLM's documentation: `generate`, and a loop over its results."""
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids + (request.response_ids or [])) for request in requests]
    outputs = engine.llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=K), use_tqdm=False)
    return [
        _from_dicts(request.response_ids or [], (output.prompt_logprobs or [])[len(request.prompt_ids) :])
        for request, output in zip(requests, outputs, strict=True)
    ]


def _from_dicts(ids: list[int], positions: Sequence[Any]) -> Arrays:
    own, candidates, logprobs = [], [], []
    for token, position in zip(ids, positions, strict=True):
        own.append(position[token].logprob)
        best = sorted(position.items(), key=lambda item: item[1].rank)[:K]
        candidates.append([candidate for candidate, _ in best])
        logprobs.append([entry.logprob for _, entry in best])
    return np.array(own, np.float32), np.array(candidates, np.int32), np.array(logprobs, np.float32)


def measure() -> dict[str, float]:
    """Returns the seconds of each way."""
    path = str(assets_path() / "sources" / "llama")
    engine = VllmEngine(path, None, EngineConfig(kind="vllm", max_model_len=256, max_num_seqs=64))
    requests = make_requests(engine.tokenizer)
    check_same(flat(engine, requests), nested(engine, requests))
    return by_turns({way.__name__: partial(way, engine, requests) for way in (flat, nested)})


def make_requests(tokenizer: Any) -> list[Request]:
    """Returns the laboratory's rows, concatenated and cut into prompts and responses of equal length."""
    rows = prepare_rows(read_corpus(str(assets_path() / "corpus" / "train.jsonl.gz")))
    length, ids = PROMPT_TOKENS + RESPONSE_TOKENS, []
    while len(ids) < NUM_REQUESTS * length:
        row = next(rows)
        assert isinstance(row, CorpusRow), row
        ids += tokenizer.encode(f"{row.messages[-1].content}\n{row.response}\n", add_special_tokens=False)
    parts = [ids[number * length :][:length] for number in range(NUM_REQUESTS)]
    return [Request(part[:PROMPT_TOKENS], K, part[PROMPT_TOKENS:]) for part in parts]


def check_same(ours: list[Arrays], theirs: list[Arrays]) -> None:
    """Asserts that both ways give the same numbers; candidates of equal probability may swap."""
    for mine, other in zip(ours, theirs, strict=True):
        for number in (0, 2):
            np.testing.assert_allclose(mine[number], other[number], atol=1e-3)
        assert np.mean(mine[1] == other[1]) > 0.99


def run() -> list[Row]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_extraction"]
    # vLLM may have printed lines before the last one.
    done = subprocess.run(command, env=os.environ | ONE_CORE, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = {way: NUM_REQUESTS * RESPONSE_TOKENS / seconds for way, seconds in found.items()}
    title = "teacher forcing with top-10 into arrays, one core, against vLLM's nested dicts"
    return [Row(title, rate["flat"], "tokens/s", rate["nested"], ">= 3 x")]


if __name__ == "__main__":
    print(json.dumps(measure()))
