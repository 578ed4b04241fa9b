"""Answers of reasoning models, answers with several ends of turn, and rows that a template refuses."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken

from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus.turn_ends import turn_ends
from profuser.engines.answers import AnswerReader
from profuser.engines.base import ReadSettings, Response
from profuser.engines.collecting import SourceReader
from profuser.engines.signal_tables import collect_table, count
from profuser.errors import UserError
from profuser.evaluation.heldout import evaluate_table
from profuser.models.lab_paths import assets_path
from profuser.recipe.models import GenerationConfig, ModelConfig
from profuser.recipe.template import OwnTemplate
from profuser.signals.codec import TopK
from tests import tiny
from tests.corpus.families import FAMILIES, tokenizer_of
from tests.engines.test_collecting import K, Scripted, corpus

THOUGHT = "Hm, </p>?\nIt is 7."
# Name, the answer up to its text, and whether the prompt has opened the thinking.
THINKING = {
    "qwen 3": f"<think>\n{THOUGHT}\n</think>\n\n",
    "qwq": f"{THOUGHT}\n</think>\n\n",
    "deepseek r1": f"{THOUGHT}</think>",
    "glm 4.5": f"\n<think>{THOUGHT}</think>\n",
    "smollm 3": f"<think>\n{THOUGHT}\n</think>\n",
    "seed-oss": f"<seed:think>{THOUGHT}</seed:think>",
    "magistral": f"[THINK]{THOUGHT}[/THINK]",
    "gpt-oss": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
}
ANSWERS = ("The answer is 7.", " 7", "7 < 8", "\u6f22\n\n- a")


def reader_of(name, **settings):
    tokenizer, template = tokenizer_of(name), OwnTemplate(date="2026-03-05", **settings)
    tokens = TokenBytes.from_tokenizer(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    return tokenizer, AnswerReader(tokenizer, tokens, template)


def response(ids, reason="stop"):
    topk = TopK(np.tile(np.arange(K), (len(ids), 1)), np.full((len(ids), K), -1.5))
    return Response(np.array(ids, dtype=np.int64), -np.arange(1.0, len(ids) + 1), topk, reason)


@pytest.mark.parametrize("text", ANSWERS)
@pytest.mark.parametrize("name", THINKING)
def test_an_answer_is_what_follows_its_thinking(name, text):
    tokenizer, reader = reader_of(name)
    ids = tokenizer.encode(THINKING[name] + text + FAMILIES[name].end, add_special_tokens=False)
    answer = reader.read(response(ids))
    assert (answer.text, answer.unreadable) == (text.removeprefix(" "), None)
    kept = answer.response
    assert kept.ids.tolist() == ids[answer.thinking_tokens :]
    assert kept.logprobs.tolist() == (-np.arange(1.0, len(ids) + 1))[answer.thinking_tokens :].tolist()
    assert kept.topk.num_positions == len(kept.ids)
    assert reader.tokens.spell(kept.ids).decode().removeprefix(" ") == answer.text


@pytest.mark.parametrize("name", THINKING)
def test_an_answer_cut_inside_its_thinking_is_no_answer(name):
    tokenizer, reader = reader_of(name)
    whole = tokenizer.encode(THINKING[name], add_special_tokens=False)
    close = whole[: len(tokenizer.encode(THINKING[name].partition(THOUGHT)[0] + THOUGHT, add_special_tokens=False))]
    for ids, reason in ((close, "length"), (close[:-2], "length"), ([*close, tokenizer.eos_token_id], "stop")):
        answer = reader.read(response(ids, reason))
        assert (answer.text, answer.unreadable) == (None, "thinking")
    answer = reader.read(response([*whole, tokenizer.eos_token_id]))
    assert (answer.text, answer.unreadable) == (None, "blank")


@pytest.mark.parametrize("name", ["llama 3", "qwen 2.5", "qwen 3", "smollm 3"])
@pytest.mark.parametrize("text", ["Use <think> and </think>.", "7", "</p> no </think>"])
def test_markers_inside_an_answer_are_text(name, text):
    tokenizer, reader = reader_of(name)
    ids = tokenizer.encode(text + FAMILIES[name].end, add_special_tokens=False)
    assert reader.read(response(ids)).text == text


def test_thinking_is_kept_on_request_unless_it_is_special_tokens():
    for name in ("qwen 3", "qwq", "seed-oss"):
        tokenizer, reader = reader_of(name, thinking="keep")
        ids = tokenizer.encode(f"{THINKING[name]}7.{FAMILIES[name].end}", add_special_tokens=False)
        answer = reader.read(response(ids))
        assert answer.text == THINKING[name] + "7."
        assert answer.response.ids.tolist() == ids
    with pytest.raises(UserError, match=r"thinking: keep.*special token.*set template.thinking: strip"):
        reader_of("gpt-oss", thinking="keep")


def thinker(text):
    """Returns an engine whose model's prompts open thinking, with one scripted answer per row."""
    tokenizer = tokenizer_of("qwq")
    ids = tokenizer.encode(text, add_special_tokens=False)
    return Scripted([ids] * 2, "stop", tokenizer, vocab_size=len(tokenizer))


def test_a_source_thinks_before_its_answer_and_not_before_the_ground_truth():
    engine = thinker("Hm.\n</think>\n\n7.<|im_end|>")
    rows, how = corpus("7.", "<think>\nOwn.\n</think>\n\n7."), ReadSettings(GenerationConfig(), K, 0, 1)
    signals = SourceReader(engine, OwnTemplate()).read(rows, how)
    decode = engine.tokenizer.decode
    forced, asked, own, _ = (decode(request.prompt_ids) for request in engine.asked)
    assert forced.endswith("assistant\n<think>\n\n</think>\n\n")
    assert asked.endswith("assistant\n<think>\n")
    assert own.endswith("assistant\n")
    assert [entry.texts for entry in signals] == [["7."], ["7."]]
    assert decode(collect_table(signals, engine.vocab_size, K)["inference_ids"].to_pylist()[0]) == "7.<|im_end|>"
    assert count(signals)["thinking_tokens"] > 0
    table = evaluate_table(rows, signals, SourceReader(engine, OwnTemplate()).tokens, None)
    assert table["correct"].to_pylist() == [True, True]


def test_kept_thinking_is_forced_again_where_it_was_generated_and_not_predicted():
    engine = thinker("Hm.\n</think>\n\n7.<|im_end|>")
    reader, rows = SourceReader(engine, OwnTemplate(thinking="keep")), corpus("7.", "8.")
    signals = reader.read(rows, ReadSettings(GenerationConfig(), K, 0, 1))
    assert signals[0].texts == ["Hm.\n</think>\n\n7."]
    asked, before = engine.asked[1].prompt_ids, len(engine.asked)
    reader.force(rows.to_pylist(), [entry.answers[0].ids.tolist() for entry in signals], K, generated=True)
    assert engine.asked[before].prompt_ids == asked
    table = evaluate_table(rows, signals, reader.tokens, None, keeps_thinking=True)
    assert table["prediction"].to_pylist() == ["7.", "7."]
    assert table["correct"].to_pylist() == [True, False]


def test_unreadable_answers_are_counted_by_reason():
    tokenizer = tokenizer_of("qwq")
    texts = ["Hm", "</think>7.<|im_start|>", "</think>\n"]
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    engine = Scripted(answers, "length", tokenizer, vocab_size=len(tokenizer))
    signals = SourceReader(engine, OwnTemplate()).read(corpus("7.", "7.", "7."), ReadSettings(GenerationConfig(), K, 0))
    counts = count(signals)
    found = {name: counts.get(f"unreadable/{name}") for name in ("thinking", "special_token", "blank", "not_text")}
    assert found == {"thinking": 1, "special_token": 1, "blank": 1, "not_text": None}
    assert counts["unreadable_answers"] == 3


def test_a_row_that_a_template_refuses_is_refused_alone_with_its_place():
    tokenizer = tokenizer_of("gemma 2")
    ids = tokenizer.encode("7.<end_of_turn>", add_special_tokens=False)
    rows = corpus("7.", "8.", "9.").to_pylist()
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    table = corpus("7.").from_pylist(rows, schema=corpus("7.").schema)
    engine = Scripted([ids] * 2, "stop", tokenizer, vocab_size=len(tokenizer), end_ids=ids[-1:])
    signals = SourceReader(engine, OwnTemplate()).read(table, ReadSettings(GenerationConfig(), K, 0))
    assert [entry.refused is None for entry in signals] == [True, False, True]
    assert signals[1].refused == (
        "f:1: the chat template refuses it: System role not supported (for turns of system, user)"
    )
    assert [entry.texts for entry in signals] == [["7."], [], ["7."]]
    assert count(signals)["refused"] == 1


@pytest.mark.parametrize("named", ["template", "tokenizer", "generation config", "config"])
def test_every_named_end_of_turn_ends_an_answer(named, tmp_path):
    path = tiny.neox(tmp_path / "model")
    from transformers import AutoConfig, AutoTokenizer
    from transformers import GenerationConfig as Generation

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|eom|>", special=True)]})
    second = tokenizer.convert_tokens_to_ids("<|eom|>")
    first = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|eom|>" if named == "tokenizer" else "<|im_end|>"
    if named == "template":
        tokenizer.chat_template = tiny.CHATML.replace("<|im_end|>", "<|eom|>")
    if named == "generation config":
        Generation(eos_token_id=[first, second, 10**6]).save_pretrained(path)
    if named == "config":
        (tmp_path / "model" / "generation_config.json").unlink()
        settings = AutoConfig.from_pretrained(path)
        settings.eos_token_id = [first, second]
        settings.save_pretrained(path)
    ends = turn_ends(tokenizer, OwnTemplate(), path, None)
    assert set(ends) == {first, second}
    assert ends[0] == (second if named == "template" else first)
    tokens = TokenBytes.from_tokenizer(tokenizer, len(tokenizer), ends)
    reader = AnswerReader(tokenizer, tokens, OwnTemplate())
    spelt = tokenizer.encode("7.", add_special_tokens=False)
    assert [reader.read(response([*spelt, end])).text for end in ends] == ["7.", "7."]


@pytest.mark.parametrize("kind", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_model_that_ends_with_the_second_end_of_its_generation_config_gives_whole_answers(kind, tmp_path):
    from profuser.engines.loading import ReadModel

    folder = shutil.copytree(assets_path() / "sources" / "llama", tmp_path / "model")
    for name, change in (("tokenizer_config", {"eos_token": "<unk>"}), ("generation_config", {"eos_token_id": [0, 2]})):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    engine = {"kind": kind, "dtype": "float32", "max_model_len": 128}
    model = ReadModel(str(folder), ModelConfig.model_validate({"model": str(folder), "engine": engine}), OwnTemplate())
    reader = model.load()
    rows = corpus("gale", "x").to_pylist()
    rows = [row | {"messages": [{"role": "user", "content": "Reverse the word elag."}]} for row in rows]
    table = pa.Table.from_pylist(rows, schema=corpus("x").schema)
    signals = reader.read(table, ReadSettings(GenerationConfig(max_tokens=40), K, 0))
    reader.loop.close()
    assert [entry.answers[0].finish_reason for entry in signals] == ["stop", "stop"]
    assert all(entry.answers[0].ids[-1] == 2 and entry.texts[0] for entry in signals)
    assert count(signals)["unreadable_answers"] == 0
    scored = evaluate_table(table, signals, reader.tokens, "(.+)")["prediction"].to_pylist()
    assert scored == [entry.texts[0] for entry in signals]


@pytest.mark.parametrize("name", ["llama 2", "qwen 3", "gemma 2"])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("It is 12.\nQuestion: And 13?\nAnswer: 14.\nQuestion:", "It is 12."),
        ("It is 12.\n\nQuestion: And", "It is 12.\n"),
        ("It is a Questionnaire", "It is a Questionnaire"),
        ("\nQuestion: What?", None),
    ],
)
def test_an_answer_ends_before_the_recipes_stop_text(name, answer, text):
    tokenizer, reader = reader_of(name, stop=["\nQuestion:", "Nothing like it"])
    ids = tokenizer.encode(answer, add_special_tokens=False)
    found = reader.read(response(ids, "length"))
    if text is None:
        assert (found.text, found.unreadable) == (None, "blank")
        return
    assert (found.text or "").removesuffix("\n") == text.removesuffix("\n")
    kept = found.response
    assert kept.finish_reason == ("stop" if "Question:" in answer else "length")
    assert kept.ids.tolist() == ids[: len(kept.ids)]
    assert len(kept.ids) == len(kept.logprobs) == kept.topk.num_positions
    assert reader.tokens.spell(kept.ids).decode().removeprefix(" ") == found.text
