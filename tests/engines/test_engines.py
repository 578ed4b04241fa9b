"""Tests that the two engines give the same results for the same model, for every architecture in use."""

from dataclasses import replace

import numpy as np
import pytest

from profuser.engines.base import Request
from profuser.engines.loading import load_engine
from profuser.engines.loop import EngineLoop
from profuser.engines.vllm import VllmEngine
from profuser.errors import EngineError
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig
from tests import tiny

pytestmark = pytest.mark.vllm

ENGINE = {"dtype": "float32", "max_model_len": 128}
GREEDY = GenerationConfig(max_tokens=12)
K = 6


@pytest.mark.parametrize("make", [tiny.llama, tiny.mpt, tiny.neox], ids=["llama", "mpt", "gpt_neox"])
def test_vllm_equals_transformers(make, tmp_path):
    path = make(tmp_path / "model")
    rng = np.random.default_rng(0)
    forced = [Request(rng.integers(5, 300, 9).tolist(), K, rng.integers(5, 300, n).tolist()) for n in (1, 7, 30)]
    generated = [Request(r.prompt_ids, K, generation=GREEDY, max_tokens=12) for r in forced]
    results = {}
    for kind in ("transformers", "vllm"):
        engine = load_engine(path, None, EngineConfig(kind=kind, **ENGINE))
        loop, queue = EngineLoop(engine), []
        loop.observe = lambda engine, left, queue=queue: queue.append((left, getattr(engine, "num_running", left)))
        results[kind] = loop.run([*forced, *generated])
        whole = results[kind][len(forced)]
        texts = [engine.tokenizer.decode([token]) for token in whole.ids.tolist()]
        spelt = engine.tokenizer.decode(whole.ids)
        stop = next(text for text in texts if text.isascii() and text.strip() and text in spelt)
        ended = loop.run([replace(generated[0], stop=(stop,))])[0]
        assert ended.ids.tolist() == whole.ids[: len(ended.ids)].tolist()
        assert kind == "transformers" or len(ended.ids) == texts.index(stop) + 1
        assert engine.max_model_len == 128
        loop.close()
        assert all(0 <= running <= left for left, running in queue)
        assert max(running for _, running in queue) > 0
        assert queue[-1] == (0, 0)
    for mine, oracle in zip(results["vllm"], results["transformers"], strict=True):
        assert mine.ids.tolist() == oracle.ids.tolist()
        assert mine.finish_reason == oracle.finish_reason
        np.testing.assert_allclose(mine.logprobs, oracle.logprobs, atol=2e-4)
        np.testing.assert_allclose(mine.topk.logprobs, oracle.topk.logprobs, atol=2e-4)
        assert mine.topk.ids.shape == (len(mine.ids), K)
        same = (mine.topk.ids == oracle.topk.ids).mean()
        assert same > 0.98  # near ties may swap


def test_a_kv_cache_has_its_size_in_gib_and_one_too_small_is_named(tmp_path, monkeypatch):
    path = tiny.llama(tmp_path / "model", max_position_embeddings=65536)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    engine = VllmEngine(path, None, EngineConfig(kind="vllm", dtype="float32", max_model_len=128, kv_cache_gib=0.5))
    cache, model = engine.llm.llm_engine.vllm_config.cache_config, engine.llm.llm_engine.model_config.hf_config
    heads = model.num_key_value_heads * model.hidden_size // model.num_attention_heads
    block = 2 * model.num_hidden_layers * heads * cache.block_size * 4
    engine.close()
    assert 2**29 - block < cache.num_gpu_blocks * block <= 2**29
    with pytest.raises(EngineError) as caught:
        VllmEngine(path, None, EngineConfig(kind="vllm", dtype="float32", kv_cache_gib=0.01))
    message = str(caught.value)
    assert "KV cache is needed, which is larger than the available KV cache memory (0.01 GiB)" in message
    assert "the estimated maximum model length is" in message
    assert message.endswith("; raise engine.kv_cache_gib (0.01) or lower engine.max_model_len")
