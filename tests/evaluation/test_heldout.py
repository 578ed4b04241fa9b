"""Held-out rows under one model: which are scored, and which are rejected."""

import math

from tokenizers import normalizers

from profuser.engines.base import ReadSettings
from profuser.engines.collecting import SourceReader
from profuser.evaluation.comparison import differences
from profuser.evaluation.heldout import evaluate_table, scores
from profuser.recipe.models import GenerationConfig, OwnTemplate
from profuser.report.comparisons import heldout_comparisons
from tests.engines.test_collecting import Scripted, corpus
from tests.tiny import byte_level_tokenizer

TEXTS = ("The answer is 7.", "cafe\u0301 au lait", "It is 8 </s><|im_end|>.")


def test_a_row_that_the_models_tokens_do_not_spell_is_rejected_and_not_scored():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    answer = tokenizer.encode("7.<|im_end|>")
    reader = SourceReader(Scripted([answer] * 3, "stop", tokenizer), OwnTemplate())
    rows = corpus(*TEXTS)
    signals = reader.read(rows, ReadSettings(GenerationConfig(), 0, 0, 1))
    table = evaluate_table(rows, signals, reader.tokens, None).to_pylist()
    assert [row["refused"] is None for row in table] == [True, False, True]
    assert "tokens spell 13 bytes, the response has 14" in table[1]["refused"]
    assert [table[1][name] for name in ("nats", "correct")] == [None, None]
    assert all(
        row["nats"] > 0 and row["response_bytes"] == len(text.encode())
        for row, text in zip(table[::2], TEXTS[::2], strict=True)
    )


def test_a_model_that_cannot_teacher_force_has_an_exact_match_and_no_bits_per_byte():
    tokenizer = byte_level_tokenizer()
    answer = tokenizer.encode("7.<|im_end|>")
    rows, tables = corpus("7.", "8."), {}
    for name, forces in (("target", True), ("big", False), ("fused", True)):
        engine = Scripted([answer] * 2, "stop", tokenizer)
        engine.forces = forces
        reader = SourceReader(engine, OwnTemplate())
        signals = reader.read(rows, ReadSettings(GenerationConfig(), 0, 0, 1))
        tables[name] = evaluate_table(rows, signals, reader.tokens, None)
    found = scores(tables)["all"]
    assert {name: (one.num_rows, one.exact_match) for name, one in found.items()} == dict.fromkeys(tables, (2, 0.5))
    assert [name for name, one in found.items() if math.isnan(one.bits_per_byte)] == ["big"]
    assert differences(tables, "target").keys() == {"big", "fused"}
    assert differences(tables, "target")["big"].keys() == {"exact_match"}
    compared = {(one.measure, one.model) for one in heldout_comparisons(tables)}
    assert compared == {("bits per byte", "target"), ("exact match", "target"), ("exact match", "big")}
