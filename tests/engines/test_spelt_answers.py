"""Tests answers of a server whose tokenizer is not known: their distributions are those that the tokenizer would give."""

import numpy as np
import pyarrow as pa
import pytest

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts.schemas import ANSWER_VOCABULARY_SIZE, REWARDS, collect_schema
from profuser.engines.answers import AnswerReader
from profuser.engines.base import ReadSettings
from profuser.engines.collecting import SourceReader
from profuser.engines.endpoint.access import ask_source, read_tokens
from profuser.engines.endpoint.engine import EndpointEngine
from profuser.engines.endpoint.spelt import read_spelt, spelt_text
from profuser.engines.signal_tables import collect_table, count
from profuser.models.reference import BYTE_TOKENIZER
from profuser.recipe.models import GenerationConfig, OwnTemplate, SelectConfig
from profuser.rewards.voting import RewardScale
from profuser.selection.examples import Selector, Target
from profuser.selection.teachers import Chooser
from profuser.signals.rules import Rule
from tests import openai_server
from tests.engines.test_endpoint import rows, source
from tests.openai_server import CHAT, Failure, Scripted, distribution, serving
from tests.real_tokenizers import sentencepiece, tekken
from tests.tiny import VICUNA, byte_level_tokenizer, sentencepiece_tokenizer

K = 5
HOW = ReadSettings(GenerationConfig(max_tokens=24), K, 0, 2)
ANSWERS = {
    "Sort.": "Sort the letters a b.",
    "Say 7.": "The answer is 7.",
    "Say \u00e9.": "\u00e9 \u6f22\u5b57, caf\u00e9",
    "Smile.": "\U0001f642\U0001f642 ok\n\n\u2026",
}
SERVED = {
    "byte level": (byte_level_tokenizer, sentencepiece_tokenizer),
    "sentencepiece": (sentencepiece_tokenizer, byte_level_tokenizer),
    "mistral": (sentencepiece, byte_level_tokenizer),
    "tekken": (lambda: tekken(8_000), sentencepiece_tokenizer),
}
"""Tokenizers of the server and of the target."""


def with_template(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template or VICUNA
    return tokenizer


def reader(config, tokenizer=None):
    tokens = read_tokens(
        config.endpoint.tokenizer or BYTE_TOKENIZER, config, OwnTemplate(), len(tokenizer or [0] * 257)
    )
    facts = ask_source(config, None, HOW, tokens)
    return SourceReader(EndpointEngine(config.endpoint, facts, None, tokens), OwnTemplate())


def examples(made, corpus, tokenizer):
    """Returns the inference-mode examples of a source that is alone, by row, the counts, and the collected table."""
    found = made.read(corpus, HOW)
    table = collect_table(found, made.engine.vocab_size, K, made.own_vocabularies)
    target = Target(tokenizer, TokenBytes.from_tokenizer(tokenizer, len(tokenizer)), OwnTemplate())
    chooser = Chooser(["big"], ["big"], [made.tokens], SelectConfig(), [RewardScale(0.0, 1.0)], num_samples=2)
    # The second answer wins.
    scores = [[0.0, 1.0]] * corpus.num_rows
    rewards = pa.table({"row_id": corpus["row_id"], "scores": scores}, schema=REWARDS)
    selector = Selector(chooser, [VocabProjection.build(made.tokens, target.tokens)], target, K)
    chosen, counts = selector.select(corpus, [table], [rewards])
    kept = [row for row in chosen.to_pylist() if row["mode"] == "inference"]
    return {row["row_id"]: row for row in kept}, counts, table


def ends_and_texts(tokenizer, shows_end):
    """Returns a `distribution` whose candidates are text, and at each position the end of the turn if answers show it."""
    tokens, end = TokenBytes.from_tokenizer(tokenizer, len(tokenizer)), tokenizer.eos_token_id

    def of(index, place, vocab_size, top_k):
        given = distribution(index, place, vocab_size, top_k)
        texts = {i if tokens[i] or i == index else vocab_size - 1 - i: value for i, value in given.items()}
        return {end if shows_end and rank == 2 else i: value for rank, (i, value) in enumerate(texts.items())}

    return of


@pytest.mark.parametrize(
    ("name", "names_end", "cut_after"),
    [
        *((name, *how) for name in ("byte level", "sentencepiece") for how in ((True, None), (False, None), (True, 3))),
        ("mistral", True, None),
        ("tekken", True, None),
        ("tekken", True, 3),
    ],
)
def test_the_transported_distributions_are_those_with_the_tokenizer(monkeypatch, tmp_path, name, names_end, cut_after):
    tokenizer, target = (with_template(make()) for make in SERVED[name])
    shows_end = names_end and not cut_after
    tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.setattr(openai_server, "distribution", ends_and_texts(tokenizer, shows_end))
    script = Scripted(
        answer=lambda body: ANSWERS.get(body["messages"][-1]["content"], "The sea."),
        **{"tokenizer": tokenizer, "exact_bytes": True, "names_end": names_end, "cut_after": cut_after},
    )
    corpus = rows(*ANSWERS)
    with serving(script) as url:
        known = examples(reader(source(url, tmp_path / name), tokenizer), corpus, target)
        spelt = examples(reader(source(url)), corpus, target)
    assert spelt[2].schema == collect_schema(ANSWER_VOCABULARY_SIZE, True, True)
    assert spelt[2]["answers"].to_pylist() == known[2]["answers"].to_pylist()
    assert spelt[2]["training_nats"].null_count == len(ANSWERS)
    assert spelt[0].keys() == known[0].keys()
    assert len(known[0]) == len(ANSWERS) or cut_after
    for row_id, mine in spelt[0].items():
        other = known[0][row_id]
        assert mine["rules"] == other["rules"]
        assert set(mine["rules"]) != {Rule.NONE}
        assert mine["topk_ids"] == other["topk_ids"]
        assert (target.eos_token_id in mine["topk_ids"]) == shows_end
        np.testing.assert_allclose(mine["topk_logprobs"], other["topk_logprobs"], rtol=1e-3)
        assert mine["response_ids"] == other["response_ids"]
    assert spelt[1]["alignment/big/project"] > 0


def entry(spelt, logprob=-0.5, tops=(), name=None):
    """Returns a token as a server gives it, with candidates `(bytes, logprob)` or `(bytes, logprob, name)`."""
    data = spelt if spelt is None else list(spelt)
    named = (spelt or b"").decode(errors="replace") if name is None else name
    own = {"token": named, "bytes": data, "logprob": logprob}
    return own | {"top_logprobs": [entry(one, value, (), *more) for one, value, *more in tops]} if tops else own


def texts_of(found):
    """Returns the tokens' bytes, and per position the candidates' bytes with their log-probabilities."""
    spell = [found.vocabulary[i] for i in found.ids]
    tops = [
        {
            found.vocabulary[i]: round(float(value), 4)
            for i, value in zip(ids, values, strict=True)
            if np.isfinite(value)
        }
        for ids, values in zip(found.topk.ids, found.topk.logprobs, strict=True)
    ]
    return spell, tops


def test_the_token_after_the_text_ends_the_turn_wherever_it_is_a_candidate():
    end = b"<|im_end|>"
    entries = [
        entry(b"It", tops=((b"It", -0.5), (end, -2.0), (b"<|endoftext|>", -3.0))),
        entry(end, tops=((end, -0.1),)),
    ]
    found = read_spelt("It", "stop", entries, K)
    assert texts_of(found) == ([b"It", b""], [{b"It": -0.5, b"": -2.0}, {b"": -0.1}])
    assert found.vocabulary[0] == b""


@pytest.mark.parametrize("special", ["<|im_end|>", "</s>", "<pad>", "<\uff5cend\u2581of\u2581sentence\uff5c>"])
def test_a_special_token_that_ends_no_turn_of_the_answer_is_text_only_where_the_answer_spells_it(special):
    tops = ((b"It", -0.5), (special.encode(), -1.0))
    assert texts_of(read_spelt("It", "length", [entry(b"It", tops=tops)], K))[1] == [{b"It": -0.5}]
    found = read_spelt(special, "length", [entry(special.encode(), tops=tops)], K)
    assert texts_of(found) == ([special.encode()], [{b"It": -0.5, special.encode(): -1.0}])


def test_an_end_without_bytes_is_found_by_its_name_and_other_candidates_without_bytes_are_left_out():
    tops = ((b"It", -0.5), (None, -1.5, "<eot>"), (None, -2.5, "<tool>"))
    entries = [entry(b"It", tops=tops), entry(None, tops=((None, -0.1, "<eot>"),), name="<eot>")]
    assert texts_of(read_spelt("It", "stop", entries, K)) == ([b"It", b""], [{b"It": -0.5, b"": -1.5}, {b"": -0.1}])


def test_tokens_that_are_parts_of_a_character_keep_their_bytes():
    entries = [entry(b"\xc3", tops=((b"\xc3", -0.5), (b"\xe6\xbc", -1.0))), entry(b"\xa9 ", tops=((b"\xa9 ", -0.2),))]
    found = read_spelt("\u00e9 ", "stop", entries, K)
    assert texts_of(found) == ([b"\xc3", b"\xa9 ", b""], [{b"\xc3": -0.5, b"\xe6\xbc": -1.0}, {b"\xa9 ": -0.2}, {}])


def test_a_character_that_the_server_spells_with_its_last_token_is_one_token_without_a_distribution():
    parts = [
        entry(b"", -1.0, tops=((b"", -1.0),)),
        entry(b"", -0.25),
        entry("\u6f22".encode(), -0.5, tops=((b"x", -2.0),)),
    ]
    found = read_spelt("a\u6f22", "stop", [entry(b"a", tops=((b"a", -0.5), (b"", -3.0))), *parts], K)
    assert texts_of(found) == ([b"a", "\u6f22".encode(), b""], [{b"a": -0.5}, {}, {}])
    assert found.logprobs[1] == pytest.approx(-1.75)


def test_a_candidate_whose_bytes_are_lost_is_left_out():
    lost = "\N{REPLACEMENT CHARACTER}"
    entries = [entry(b"a", tops=((b"a", -0.5), (lost.encode(), -1.0), (b"\xc3", -2.0, lost)))]
    assert texts_of(read_spelt("a", "stop", entries, K))[1][0] == {b"a": -0.5, b"\xc3": -2.0}


@pytest.mark.parametrize("said", ["caf", "caf\N{REPLACEMENT CHARACTER}"])
def test_an_answer_that_is_cut_inside_a_character_loses_that_character(said):
    found = read_spelt(said, "length", [entry(b"ca"), entry(b"f"), entry(b"\xc3")], K)
    tokenizer = byte_level_tokenizer()
    answers = AnswerReader(tokenizer, TokenBytes.from_tokenizer(tokenizer, 400), OwnTemplate())
    answer = answers.read(found)
    assert (answer.text, len(answer.response.ids), answer.response.finish_reason) == ("caf", 2, "length")


def test_thinking_that_the_server_separates_is_left_out():
    thought = [entry(b"<think>"), entry(b"It is 7"), entry(None, name="</think>")]
    found = read_spelt("It is 7", "stop", [*thought, entry(b"It"), entry(b" is 7"), entry(b"<eos>")], K)
    assert texts_of(found)[0] == [b"It", b" is 7", b""]


def test_tokens_of_a_text_at_which_the_server_stops_end_no_turn():
    entries = [entry(b"It", tops=((b"It", -0.5), (b"\n\n", -1.0))), entry(b"\n\n")]
    found = read_spelt("It", "stop", entries, K, ("\n\n",))
    assert texts_of(found) == ([b"It"], [{b"It": -0.5, b"\n\n": -1.0}])


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry(None, name="It")],
        [entry(b"It"), entry(b" is"), entry(b" 7")],
        [entry(b"It"), entry(b"\n")],
        [entry(b"It"), entry(b"<eos>"), entry(b"<eos>")],
        [entry(b"I"), entry(None, name="?"), entry(b"t")],
        [entry("\N{REPLACEMENT CHARACTER}".encode())],
        [entry(b"It's")],
    ],
    ids=["none", "no bytes", "more", "blank at the end", "two ends", "unspelt", "lost", "longer"],
)
def test_tokens_that_do_not_join_to_the_text_give_no_distributions(entries):
    assert read_spelt("It", "stop", entries, K) is None
    found = spelt_text("It", "stop", K)
    assert texts_of(found) == ([b"I", b"t", b""], [{}, {}, {}])
    assert found.is_unscored


def test_an_answer_without_distributions_is_counted_and_others_of_its_row_keep_theirs():
    turn = []

    def answer(body):
        if "Sort" not in body["messages"][-1]["content"]:
            return "The sea."
        turn.append(body)
        logprobs = {"content": [entry(b"so", tops=((b"so", -0.5), (b"no", -1.0))), entry(b"rt")]}
        said = {"message": {"content": "sort" if len(turn) % 2 else "else"}, "finish_reason": "stop"}
        return said | {"logprobs": logprobs}

    with serving(Scripted(answer=answer, tokenizer=byte_level_tokenizer())) as url:
        made = reader(source(url, concurrency=1))
        found = made.read(rows("Sort."), HOW)
    assert sorted(found[0].texts) == ["else", "sort"]
    assert count(found)["unscored_answers"] == 1
    table = collect_table(found, made.engine.vocab_size, K, made.own_vocabularies)
    assert set(table["answer_vocabulary"].to_pylist()[0]) == {b"", b"so", b"rt", b"no", *(bytes([b]) for b in b"else")}


@pytest.mark.parametrize(
    ("script", "given"),
    [
        ({}, None),
        ({"tokenizer": byte_level_tokenizer()}, K),
        ({"tokenizer": byte_level_tokenizer(), "answer": lambda body: "\u6f22"}, K),
        ({"tokenizer": sentencepiece_tokenizer()}, None),
        ({"tokenizer": byte_level_tokenizer(), "max_logprobs": 3}, None),
        ({"tokenizer": byte_level_tokenizer(), "fail": "logprobs"}, None),
        ({"tokenizer": byte_level_tokenizer(), "fail": "unnamed"}, None),
        ({"tokenizer": byte_level_tokenizer(), "fail": "broken"}, None),
    ],
    ids=[
        "none",
        "given",
        "given for other texts",
        "spaces lost",
        "too few",
        "refused",
        "refused without a name",
        "broken",
    ],
)
def test_what_a_server_gives_without_a_tokenizer_is_found_by_first_requests(script, given):
    failures = {
        "logprobs": Failure(400, "no logprobs here"),
        "unnamed": Failure(422, "no"),
        "broken": Failure(501, "no"),
    }
    failure = failures.get(script.get("fail"))
    fail = lambda path, body: failure if path == CHAT and "logprobs" in body else None  # noqa: E731
    said = script.get("answer", lambda body: "The sea.")
    with serving(Scripted(**script | {"fail": fail, "answer": said})) as url:
        made = reader(source(url, retry_seconds=1))
        (found,) = made.read(rows("Sort."), HOW)
    assert (made.engine.facts.top_logprobs, made.engine.facts.forces) == (given, False)
    assert found.texts == [said({})] * 2
    assert made.own_vocabularies == (given is not None)
    assert found.answers[0].is_unscored == (given is None or not found.texts[0].isascii())
