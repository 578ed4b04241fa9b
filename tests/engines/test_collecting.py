"""Tests how an engine's responses are read: text from bytes, answers cut inside a character, rows that do not fit."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import normalizers

from profuser.artifacts.schemas import CORPUS
from profuser.corpus import Message, encode_example
from profuser.engines.base import ReadSettings, Response
from profuser.engines.collecting import SourceReader
from profuser.engines.crash_guard import EngineDeadError
from profuser.engines.signal_tables import collect_table, count, read_signals, signals_table, to_source_signals
from profuser.recipe.models import GenerationConfig, OwnTemplate
from profuser.signals.codec import TopK
from tests.tiny import byte_level_tokenizer

K = 3


@dataclass
class Scripted:
    """An engine with scripted answers: the tests are about their processing."""

    answers: list[list[int]]
    reason: str
    tokenizer: Any = field(default_factory=byte_level_tokenizer)
    max_model_len: int = 128
    vocab_size: int = 400
    end_ids: list[int] = field(default_factory=list)
    done: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def add(self, number, request):
        self.asked.append(request)
        if request.response_ids:
            self.done.append((number, self.respond(request.response_ids, "given")))
        else:
            self.done.append((number, self.respond(self.answers.pop(0), self.reason)))

    def step(self):
        done, self.done = self.done, []
        return done

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


def read(engine, *responses, num_samples=1):
    how = ReadSettings(GenerationConfig(), K, 0, num_samples)
    return SourceReader(engine, OwnTemplate()).read(corpus(*responses), how)


def byte_ids(tokenizer, text):
    """Returns one token per byte, as a byte-level BPE spells text without merges."""
    return tokenizer.encode(text, add_special_tokens=False)


def test_an_answer_cut_inside_a_character_loses_the_tokens_of_that_character():
    ids = byte_ids(byte_level_tokenizer(), "ok \u6f22")
    for cut in (1, 2):
        (entry,) = read(Scripted([ids[:-cut]], "length"), "Sort.")
        assert entry.texts == ["ok "]
        (answer,) = entry.answers
        assert answer.ids.tolist() == ids[:-3]
        assert answer.topk.num_positions == len(answer.logprobs) == len(ids) - 3
    (entry,) = read(Scripted([ids], "length"), "Sort.")
    assert entry.texts == ["ok \u6f22"]


def test_an_answer_that_is_not_text_is_counted_and_is_no_candidate():
    ids = byte_ids(byte_level_tokenizer(), "\u6f22 ok")
    signals = read(Scripted([ids[1:], ids, [2]], "stop"), "Sort.", "Say 7.", "Say 3.")
    assert [entry.texts for entry in signals] == [[None], ["\u6f22 ok"], [None]]
    counts = count(signals)
    assert counts["unreadable_answers"] == 2
    assert len(collect_table(signals, 400, K)) == 3


def test_a_row_that_is_too_long_for_a_source_is_refused_with_the_reason():
    signals = read(Scripted([byte_ids(byte_level_tokenizer(), "ok")], "stop", max_model_len=40), "word " * 60, "Sort.")
    assert "this source takes fewer than 40" in signals[0].refused
    assert signals[1].refused is None
    table = collect_table(signals, 400, K)
    assert table["training_ids"].to_pylist()[0] == []
    assert count(signals)["refused"] == 1


def test_several_answers_of_a_row_are_read_back_one_by_one():
    ids = [byte_ids(byte_level_tokenizer(), text) for text in ("ok", "Sort it.", "7", "Say nothing.")]
    signals = read(Scripted(list(ids), "stop"), "Sort.", "Say 7.", num_samples=2)
    assert [entry.texts for entry in signals] == [["ok", "Sort it."], ["7", "Say nothing."]]
    table = collect_table(signals, 400, K)
    for samples in ((0, 1), (1, 0)):
        found = read_signals(table, "inference", samples, 400, K)
        wanted = [ids[samples[0]], ids[2 + samples[1]]]
        assert [found.ids.row(row).tolist() for row in range(2)] == wanted
        assert found.topk.num_positions == len(found.logprobs) == sum(map(len, wanted))
    training = read_signals(table, "training", (0, 0), 400, K)
    assert [len(training.ids.row(row)) for row in range(2)] == [len(entry.training.ids) for entry in signals]


def test_steps_after_candidates_are_requested_by_row_and_read_back_in_any_row_order():
    tokenizer = byte_level_tokenizer()
    ids = [byte_ids(tokenizer, text) for text in ("Sort it.", "7", "Say nothing.")]
    engine = Scripted([[1]] * 4, "length", max_model_len=64)
    reader = SourceReader(engine, OwnTemplate())
    rows = corpus("Sort it.", "7", "Say nothing.").to_pylist()
    signals = to_source_signals([engine.respond(row, "given") for row in ids])
    last = len(signals.logprobs) - 1
    used_up = np.array([1, 2, last, last]), np.array([11, 12, 13, 14])
    steps = reader.step_after(rows, signals, used_up, K)
    assert (steps.positions.tolist(), steps.candidates.tolist()) == ([1, 2, last, last], [11, 12, 13, 14])
    for request, row, place, candidate in zip(
        engine.asked, (0, 0, 2, 2), (1, 2, -1, -1), (11, 12, 13, 14), strict=True
    ):
        assert request.prompt_ids[-len(ids[row][:place]) - 1 :] == [*ids[row][:place], candidate]
        assert (request.response_ids, request.max_tokens, request.top_k) == (None, 1, K)
    table = signals_table(["0", "1", "2"], "training", [engine.respond(row, "given") for row in ids], 400, steps)
    assert table["step_positions"].to_pylist() == [[1, 2], [], [len(ids[2]) - 1] * 2]
    found = read_signals(table.take([2, 1]), "response", [0, 0], 400, K).steps
    assert (found.positions.tolist(), found.candidates.tolist()) == ([len(ids[2]) - 1] * 2, [13, 14])
    np.testing.assert_array_equal(found.topk.ids, steps.topk.ids[2:])
    nothing = read_signals(table.take([1]), "response", [0], 400, K).steps
    assert nothing.topk.num_positions == 0


def test_a_step_that_does_not_fit_into_the_context_is_left_out():
    ids = byte_ids(byte_level_tokenizer(), "Say nothing.")
    engine = Scripted([[1]], "length")
    reader = SourceReader(engine, OwnTemplate())
    signals = to_source_signals([engine.respond(ids, "given")])
    used_up = np.array([0, 5]), np.array([11, 11])
    reader.step_after(corpus("Say nothing.").to_pylist(), signals, (used_up[0][:1], used_up[1][:1]), K)
    engine.max_model_len = len(engine.asked[0].prompt_ids) + 1
    engine.answers.append([1])
    found = reader.step_after(corpus("Say nothing.").to_pylist(), signals, used_up, K)
    assert found.positions.tolist() == [0]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_each_row_is_reported_once_when_its_last_response_arrives(num_samples):
    ok = byte_ids(byte_level_tokenizer(), "ok")
    engine = Scripted([ok] * 9, "stop", max_model_len=60)
    how = ReadSettings(GenerationConfig(), K, 0, num_samples)
    done = []
    rows = corpus("Sort.", "word " * 60, "Say 7.", "Say 3.")
    found = SourceReader(engine, OwnTemplate()).read(rows, how, lambda: done.append(len(engine.asked)))
    assert [entry.refused is None for entry in found] == [True, False, True, True]
    assert len(done) == 3, "a row that is refused has no responses"


def test_the_answer_of_another_model_is_encoded_as_ones_own_or_left_out():
    engine = Scripted([], "stop")
    reader = SourceReader(engine, OwnTemplate())
    rows = corpus("x", "y", "z").to_pylist()
    whole, cut, too_long = reader.encode_answers(rows, ["It is 7.", "It is", "very " * 200], [False, True, False])
    spell = engine.tokenizer.decode
    end = encode_example(engine.tokenizer, [Message("user", "Say it.")], "a", OwnTemplate()).response_ids[-1]
    assert spell(whole, skip_special_tokens=True) == "It is 7."
    assert whole[-1] == end
    assert spell(cut) == "It is"
    assert too_long is None
    engine.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert reader.encode_answers(rows[:1], ["cafe\u0301"], [False]) == [None]
    # A server that only answers reads none.
    engine.forces = False
    assert SourceReader(engine, OwnTemplate()).encode_answers(rows[:1], ["It is 7."], [False]) == [None]


def test_the_responses_of_a_failed_engine_are_no_progress():
    engine = Scripted([], "stop")  # fails at the first answer
    done = []
    with pytest.raises(EngineDeadError):
        SourceReader(engine, OwnTemplate()).read(
            corpus("Sort."), ReadSettings(GenerationConfig(), K, 0), lambda: done.append(1)
        )
    assert done == []
