"""An engine that computes another model than Transformers is found on a few teacher-forced rows."""

import numpy as np
import pytest
import torch

from profuser.engines.base import Request, Response
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.loop import EngineLoop
from profuser.engines.transformers import TransformersEngine
from profuser.planning.engine_check import Disagreement, ScoredRow, compare, scored_rows
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import OwnTemplate
from profuser.signals.codec import TopK
from tests import tiny
from tests.planning.test_probing import Rambling

ROWS = [([3, 4, 5], [6, 7, 8, 9]), ([10], [11, 12])]


def scored(path):
    """Returns rows as another engine with the model of a folder would score them."""
    loop = EngineLoop(TransformersEngine(path, None, EngineConfig(kind="transformers")))
    found = loop.run([Request(prompt, 0, response) for prompt, response in ROWS])
    loop.close()
    return [ScoredRow(*row, one.logprobs) for row, one in zip(ROWS, found, strict=True)]


def test_an_engine_that_ignores_a_setting_of_the_model_is_reported(tmp_path):
    same, clipped = tiny.mpt(tmp_path / "same"), tmp_path / "clipped"
    torch.manual_seed(1)
    model = TransformersEngine(same, None, EngineConfig(kind="transformers")).model
    for layer in model.transformer.blocks:
        torch.nn.init.normal_(layer.attn.Wqkv.weight, std=1.0)
    model.save_pretrained(same)
    model.config.attn_config.clip_qkv = 0.05
    model.save_pretrained(clipped)
    (clipped / "tokenizer.json").write_bytes((tmp_path / "same" / "tokenizer.json").read_bytes())
    (clipped / "tokenizer_config.json").write_bytes((tmp_path / "same" / "tokenizer_config.json").read_bytes())
    agreed, differing = (compare(path, None, EngineConfig(), scored(same)) for path in (same, str(clipped)))
    assert agreed.num_tokens == differing.num_tokens == 6
    assert agreed.largest < 1e-5
    assert agreed.sentence("mpt") == (
        "source mpt: vLLM and Transformers differ by 0.000 nats per token (at most 0.00) over 6 teacher-forced tokens"
    )
    assert differing.is_error
    assert differing.largest >= differing.mean > 0.05
    assert differing.sentence("mpt").startswith("WARNING: source mpt: vLLM and Transformers differ by ")
    assert differing.sentence("mpt").endswith("set sources.mpt.engine.kind: transformers")


@pytest.mark.parametrize(("mean", "is_error"), [(0.0, False), (0.05, False), (0.051, True), (float("nan"), True)])
def test_a_difference_above_rounding_or_no_number_is_a_disagreement(mean, is_error):
    assert Disagreement(mean, mean, 9).is_error is is_error


def test_two_rows_that_the_source_did_not_refuse_are_compared(tmp_path):
    engine = TransformersEngine(tiny.llama(tmp_path / "llama"), None, EngineConfig(kind="transformers"))
    response = scored(str(tmp_path / "llama"))[0]
    entry = RowSignals("b", 4, None, training=response_of(response))
    results = [RowSignals("a", 4, "too long"), entry, entry, entry]
    prompts = [[], [1], [2], [3]]
    assert scored_rows(SourceReader(engine, OwnTemplate()), prompts, results) == []
    found = scored_rows(SourceReader(Rambling(), OwnTemplate()), prompts, results)
    assert [(row.prompt_ids, row.response_ids) for row in found] == [([1], [6, 7, 8, 9]), ([2], [6, 7, 8, 9])]


def response_of(row):
    none = np.zeros((len(row.response_ids), 0))
    topk = TopK(none.astype(np.int32), none.astype(np.float32))
    return Response(np.array(row.response_ids), row.logprobs, topk, "given")
