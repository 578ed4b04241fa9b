"""Tests the Transformers engine against the model's own logits, row by row: teacher forcing, greedy and sampled answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from profuser.engines import transformers as transformers_engine
from profuser.engines.base import Request
from profuser.engines.transformers import TransformersEngine
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig
from tests import tiny

K = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny.llama(tmp_path_factory.mktemp("model"))
    return TransformersEngine(path, None, EngineConfig(kind="transformers", dtype="float32", max_model_len=128))


def requests(generation, num=5):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 300, rng.integers(1, 20)).tolist() for _ in range(num)]
    if generation is None:
        return [Request(prompt, K, rng.integers(5, 300, rng.integers(1, 30)).tolist()) for prompt in prompts]
    return [Request(prompt, K, generation=generation, max_tokens=9 + row, seed=3) for row, prompt in enumerate(prompts)]


GENERATIONS = [
    None,
    GenerationConfig(max_tokens=20),
    GenerationConfig(max_tokens=20, temperature=1.0, top_p=0.9, repetition_penalty=1.3),
]


def test_requests_with_different_top_k_are_all_answered(engine):
    rows = requests(None)
    for number, request in enumerate(rows):
        engine.add(number, replace(request, top_k=number % 3))
    answers = dict(engine.step()) | dict(engine.step()) | dict(engine.step())
    assert [answers[number].topk.ids.shape[1] for number in range(len(rows))] == [0, 1, 2, 0, 1]


def run(engine, asked):
    for number, request in enumerate(asked):
        engine.add(number, request)
    answers = {}
    while engine.waiting:
        answers |= dict(engine.step())
    assert not engine.begun
    return answers


@pytest.mark.parametrize("round_tokens", [128, 4])
@pytest.mark.parametrize("generation", GENERATIONS, ids=["forced", "greedy", "sampled"])
@torch.no_grad()
def test_distributions_match_the_models_logits(engine, generation, round_tokens, monkeypatch):
    monkeypatch.setattr(transformers_engine, "ROUND_TOKENS", round_tokens)
    asked = requests(generation)
    answers = run(engine, asked)
    assert sorted(answers) == list(range(len(asked)))
    for number, request in enumerate(asked):
        answer = answers[number]
        ids = torch.tensor([request.prompt_ids + answer.ids.tolist()])
        logprobs = engine.model(ids).logits[0, len(request.prompt_ids) - 1 : -1].float().log_softmax(-1)
        own = logprobs.gather(1, torch.from_numpy(answer.ids)[:, None])[:, 0]
        np.testing.assert_allclose(answer.logprobs, own.numpy(), atol=1e-4)
        assert answer.topk.ids.shape == answer.topk.logprobs.shape == (len(answer.ids), K)
        np.testing.assert_allclose(answer.topk.logprobs, logprobs.topk(K).values.numpy(), atol=1e-4)
        at_ids = logprobs.gather(1, torch.from_numpy(answer.topk.ids.astype(np.int64)))
        np.testing.assert_allclose(answer.topk.logprobs, at_ids.numpy(), atol=1e-4)
        if generation is None:
            assert (answer.ids.tolist(), answer.finish_reason) == (request.response_ids, "given")
        else:
            assert len(answer.ids) <= request.max_tokens
            ended = answer.ids[-1] in engine.end_ids
            assert answer.finish_reason == ("stop" if ended else "length")
            assert ended or len(answer.ids) == request.max_tokens
    assert engine.step() == []


def test_greedy_answers_do_not_depend_on_the_batch(engine, monkeypatch):
    asked = requests(GenerationConfig(max_tokens=20), num=12)
    whole = run(engine, asked)
    monkeypatch.setattr(transformers_engine, "ROUND_TOKENS", 3)
    engine.batch_tokens, before = transformers_engine.BatchTokens(20, 60), engine.batch_tokens
    parts = run(engine, asked)
    engine.batch_tokens = before
    assert [whole[n].ids.tolist() for n in range(12)] == [parts[n].ids.tolist() for n in range(12)]
