"""What becomes of an engine's responses: text from bytes, answers cut inside a character, rows that do not fit."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from profuser.engines.base import Response
from profuser.engines.collecting import SourceReader, collect_table, count
from profuser.recipe.models import GenerationConfig, OwnTemplate
from profuser.schemas import CORPUS
from profuser.signals.codec import TopK
from tests.tiny import byte_level_tokenizer

K = 3


@dataclass
class Scripted:
    """An engine that answers what it is told: the test is about what is made of the answers."""

    answers: list[list[int]]
    reason: str
    tokenizer: Any = field(default_factory=byte_level_tokenizer)
    max_model_len: int = 128
    vocab_size: int = 400

    def run(self, requests, generation, top_k, seed):
        answers = iter(self.answers)
        return [
            self.respond(r.response_ids, "given") if r.response_ids else self.respond(next(answers), self.reason)
            for r in requests
        ]

    def respond(self, ids, reason):
        topk = TopK(np.tile(np.arange(K), (len(ids), 1)), np.full((len(ids), K), -1.5))
        return Response(np.array(ids, dtype=np.int64), np.full(len(ids), -0.5), topk, reason)

    def close(self):
        pass


def corpus(*responses):
    rows = [
        {
            "row_id": str(number),
            "messages": [{"role": "user", "content": "Say it."}],
            "response": text,
            "category": None,
            "source_file": "f",
            "source_line": number,
        }
        for number, text in enumerate(responses)
    ]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def read(engine, *responses):
    return SourceReader(engine, OwnTemplate()).read(corpus(*responses), GenerationConfig(), K, 0)


def byte_ids(tokenizer, text):
    """One token per byte, as a byte-level BPE spells what it has no merge for."""
    return tokenizer.encode(text, add_special_tokens=False)


def test_an_answer_cut_inside_a_character_loses_the_tokens_of_that_character():
    ids = byte_ids(byte_level_tokenizer(), "ok \u6f22")
    for cut in (1, 2):
        (entry,) = read(Scripted([ids[:-cut]], "length"), "Sort.")
        assert entry.inference_text == "ok "
        assert entry.inference.ids.tolist() == ids[:-3]
        assert entry.inference.topk.num_positions == len(entry.inference.logprobs) == len(ids) - 3
    (entry,) = read(Scripted([ids], "length"), "Sort.")
    assert entry.inference_text == "ok \u6f22"


def test_an_answer_that_is_no_text_is_counted_and_no_candidate():
    ids = byte_ids(byte_level_tokenizer(), "\u6f22 ok")
    signals = read(Scripted([ids[1:], ids, [2]], "stop"), "Sort.", "Say 7.", "Say 3.")
    assert [entry.inference_text for entry in signals] == [None, "\u6f22 ok", None]
    counts = count(signals)
    assert counts["unreadable_answers"] == 2
    assert len(collect_table(signals, 400, K)) == 3


def test_a_row_that_is_too_long_for_a_source_is_refused_for_it_with_the_reason():
    signals = read(Scripted([byte_ids(byte_level_tokenizer(), "ok")], "stop", max_model_len=40), "word " * 60, "Sort.")
    assert "this source takes fewer than 40" in signals[0].refused
    assert signals[1].refused is None
    table = collect_table(signals, 400, K)
    assert table["training_ids"].to_pylist()[0] is None
    assert count(signals)["refused"] == 1
