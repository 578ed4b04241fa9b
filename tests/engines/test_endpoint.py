"""Tests sources behind a server: what reaches the signals, what is asked, and what is said."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from pydantic import SecretStr

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.engines.base import ReadSettings
from profuser.engines.collecting import SourceReader
from profuser.engines.crash_guard import CrashGuard, EngineDeadError
from profuser.engines.endpoint.access import EndpointAccess, ask_source, read_tokens
from profuser.engines.endpoint.client import EndpointError, read_key
from profuser.engines.endpoint.engine import EndpointEngine
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.engines.signal_tables import collect_table, count, read_signals, signals_table, to_source_signals
from profuser.errors import EngineError, UserError
from profuser.models.reference import BYTE_TOKENIZER
from profuser.recipe.models import GenerationConfig, OwnTemplate, SourceConfig
from profuser.signals.ragged import Ragged
from profuser.signals.rules import Rule
from profuser.storage.folder import Folder
from tests.engines.test_collecting import corpus
from tests.openai_server import CHAT, COMPLETIONS, MODEL, MODELS, OWN, Failure, Scripted, distribution, serving
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

K = 3
HOW = ReadSettings(GenerationConfig(max_tokens=24), K, 0)
TEXTS = {"Sort.": "Sort the letters", "Say 7.": "The answer is 7.", "Say é.": "é \u6f22"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, made in (("bpe", byte_level_tokenizer()), ("sp", sentencepiece_tokenizer())):
        made.save_pretrained(folder / name)
    return folder


def source(url, tokenizer=None, **settings):
    endpoint = {"base_url": url, "model": MODEL, "tokenizer": tokenizer and str(tokenizer), "retry_seconds": 20}
    return SourceConfig(name="big", endpoint=endpoint | settings)


def tokens_of(config):
    size = 257 if config.lacks_tokenizer else {"bpe": 400, "sp": 460}[config.endpoint.tokenizer.rsplit("/", 1)[-1]]
    return read_tokens(config.endpoint.tokenizer or BYTE_TOKENIZER, config, OwnTemplate(), size)


def reader(config, how=HOW, key=None):
    tokens = tokens_of(config)
    facts = ask_source(config, key, how, tokens)
    return SourceReader(EndpointEngine(config.endpoint, facts, key, tokens), OwnTemplate())


def answering(**settings):
    """Returns a server that answers the rows of `rows()` with `TEXTS`."""
    return Scripted(answer=lambda body: TEXTS.get(body["messages"][-1]["content"], "The sea."), **settings)


def rows(*texts):
    found = corpus(*(f"truth of {text}" for text in texts)).to_pylist()
    for row, text in zip(found, texts, strict=True):
        row["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return corpus().from_pylist(found, schema=corpus().schema)


def test_without_a_tokenizer_the_texts_of_the_answers_are_read_and_nothing_else():
    script = answering()
    with serving(script) as url:
        found = reader(source(url)).read(rows(*TEXTS), HOW)
    assert [entry.texts for entry in found] == [[text] for text in TEXTS.values()]
    assert [entry.training for entry in found] == [None] * 3
    counts = count(found)
    assert (counts["unscored_answers"], counts["input_tokens"], counts["output_tokens"]) == (3, 21, 9)
    (path, body, _), *_ = [
        asked for asked in script.asked if asked[1].get("messages", [{}])[-1].get("content") == "Sort."
    ]
    assert path == CHAT
    assert body["messages"] == rows("Sort.").to_pylist()[0]["messages"]
    assert not {"logprobs", "top_k", "min_p", "repetition_penalty"} & body.keys()
    assert (body["max_tokens"], body["temperature"]) == (24, 0.0)
    assert {path for path, *_ in script.asked} == {MODELS, CHAT}


def test_an_answer_of_which_only_the_text_is_known_teaches_by_cross_entropy_alone():
    with serving(answering()) as url:
        made = reader(source(url))
        table = collect_table(made.read(rows(*TEXTS), HOW), 257, K)
    assert table["training_nats"].null_count == 3
    assert table["inference_nats"].to_pylist() == [[None]] * 3
    signals = read_signals(table, "inference", [0] * 3, 257, K)
    tokenizer = byte_level_tokenizer()
    target = TokenBytes.from_tokenizer(tokenizer, 400, [tokenizer.eos_token_id])
    ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in TEXTS.values()]
    projection = VocabProjection.build(made.tokens, target)
    found = transport_rows(signals, Ragged.from_rows(ids), [text.encode() for text in TEXTS.values()], projection)
    assert found.refused == {}
    assert set(found.rules.values) == {Rule.NONE}
    assert np.isneginf(found.topk.topk.logprobs).all()


def test_a_second_reading_of_texts_asks_for_nothing_and_has_no_distributions():
    script = answering()
    with serving(script) as url:
        made = reader(source(url))
        (entry,) = made.read(rows("Sort."), HOW)
        script.asked.clear()
        (again,) = made.force(rows("Sort.").to_pylist(), [entry.answers[0].ids.tolist()], K, generated=True)
    assert script.asked == []
    assert again.is_unscored
    table = signals_table(["1"], "inference", [again], 257)
    assert read_signals(table, "response", [0], 257, K).ids.row(0).tolist() == [*b"Sort the letters", 256]


@pytest.mark.parametrize("knows_ids", [True, False])
@pytest.mark.parametrize("names_end", [True, False])
def test_with_a_tokenizer_the_answers_have_the_distributions_that_the_server_gives(tokenizers, knows_ids, names_end):
    tokenizer = byte_level_tokenizer()
    script = answering(tokenizer=tokenizer, knows_ids=knows_ids, names_end=names_end)
    # One byte of a character has no text of its own: only by ids can it be named.
    wanted = list(TEXTS.values()) if knows_ids else list(TEXTS.values())[:2]
    with serving(script) as url:
        found = reader(source(url, tokenizers / "bpe")).read(rows(*TEXTS), HOW)
    assert [entry.texts for entry in found] == [[text] for text in TEXTS.values()]
    for entry, text in zip(found, wanted, strict=False):
        (answer,) = entry.answers
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert answer.ids.tolist() == ids
        scored = len(ids) - (not names_end)
        for place in range(scored):
            own = {
                i: v
                for i, v in distribution(ids[place], place, 400, K).items()
                if knows_ids or i in answer.topk.ids[place]
            }
            given = dict(zip(answer.topk.ids[place].tolist(), answer.topk.logprobs[place].tolist(), strict=True))
            assert {i: v for i, v in given.items() if np.isfinite(v)} == pytest.approx(own)
            assert answer.logprobs[place] == pytest.approx(OWN)
        assert np.isneginf(answer.logprobs[scored:]).all()
        assert np.isneginf(answer.topk.logprobs[scored:]).all()
    assert count(found).get("unscored_answers", 0) == 3 - len(wanted)
    assert [entry.training is not None for entry in found] == [knows_ids] * 3
    collect_table(found, 400, K)


def test_a_server_that_can_teacher_forces_the_ground_truth(tokenizers):
    script = answering(tokenizer=byte_level_tokenizer())
    with serving(script) as url:
        made = reader(source(url, tokenizers / "bpe"))
        (entry,) = made.read(rows("Sort."), HOW)
        ids = entry.training.ids.tolist()
        assert made.tokens.spell(entry.training.ids) == b"truth of Sort."
        assert entry.training.logprobs == pytest.approx([OWN] * len(ids))
        (again,) = made.force(rows("Sort.").to_pylist(), [ids], K)
    prompt = next(body for path, body, _ in script.asked if path == COMPLETIONS and len(body["prompt"]) > len(ids))
    place = len(prompt["prompt"]) - len(ids)
    assert dict(zip(entry.training.topk.ids[0].tolist(), entry.training.topk.logprobs[0].tolist(), strict=True)) == (
        pytest.approx(distribution(ids[0], place, 400, K))
    )
    np.testing.assert_array_equal(again.topk.ids, entry.training.topk.ids)


def test_the_steps_after_candidates_are_asked_by_ids(tokenizers):
    script = answering(tokenizer=byte_level_tokenizer())
    with serving(script) as url:
        made = reader(source(url, tokenizers / "bpe"))
        (entry,) = made.read(rows("Sort."), HOW)
        script.asked.clear()
        used_up = np.array([1, 2]), np.array([11, 12])
        found = made.step_after(rows("Sort.").to_pylist(), to_source_signals([entry.training]), used_up, K)
    ids = entry.training.ids.tolist()
    prompts = {body["prompt"][-1]: body["prompt"] for path, body, _ in script.asked if path == COMPLETIONS}
    assert prompts[12][-3:] == [*ids[:2], 12]
    for place, candidate in enumerate((11, 12)):
        given = dict(zip(found.topk.ids[place].tolist(), found.topk.logprobs[place].tolist(), strict=True))
        assert given == pytest.approx(distribution(candidate, len(prompts[candidate]), 400, K))


def test_thinking_is_left_out_of_a_text():
    with serving(Scripted(answer=lambda body: "<think>\nSeven?\n</think>\n\nIt is 7.")) as url:
        (entry,) = reader(source(url)).read(rows("Say 7."), HOW)
    assert entry.texts == ["It is 7."]


def test_each_sample_is_a_request_with_its_own_seed():
    script = answering()
    with serving(script) as url:
        (entry,) = reader(source(url)).read(rows("Sort."), ReadSettings(GenerationConfig(temperature=0.5), K, 0, 3))
    assert len(entry.texts) == 3
    seeds = {body["seed"] for _, body, _ in script.asked if body.get("messages", [{}])[-1].get("content") == "Sort."}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (
            {"message": {"content": None, "refusal": "I can't help."}, "finish_reason": "stop"},
            "the model refuses it: I can't help.",
        ),
        ({"message": {"content": "I"}, "finish_reason": "content_filter"}, "the server's content filter"),
    ],
)
def test_a_refusal_refuses_the_row_with_the_reason(choice, reason):
    answer = lambda body: choice if "7" in body["messages"][-1]["content"] else "ok"  # noqa: E731
    with serving(Scripted(answer=answer)) as url:
        found = reader(source(url)).read(rows("Sort.", "Say 7."), HOW)
    assert [entry.refused for entry in found] == [None, reason]
    assert len(collect_table(found, 257, K)) == 2
    assert count(found)["refused"] == 1


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_request_that_the_server_rejects_refuses_its_row(status):
    fail = lambda path, body: Failure(status, "too long") if "7" in str(body.get("messages")) else None  # noqa: E731
    with serving(answering(fail=fail)) as url:
        found = reader(source(url)).read(rows("Sort.", "Say 7."), HOW)
    assert [entry.refused for entry in found] == [None, f"the server refuses it: {status}: too long"]


def test_an_answer_without_choices_refuses_its_row():
    fail = lambda path, body: Failure(200, "odd") if "7" in str(body.get("messages")) else None  # noqa: E731
    with serving(answering(fail=fail)) as url:
        found = reader(source(url)).read(rows("Sort.", "Say 7."), HOW)
    assert found[0].refused is None
    assert "its answer has no choices" in found[1].refused


def failing_twice(failure):
    """Returns a `fail` that fails twice on every conversation, and the number of failures."""
    seen, lock = {}, threading.Lock()

    def fail(path, body):
        with lock:
            key = str(body.get("messages"))
            seen[key] = seen.get(key, 0) + 1
            return failure if path == CHAT and seen[key] <= 2 else None

    return fail, seen


@pytest.mark.parametrize(
    "failure", [Failure(429), Failure(500), Failure(503), Failure(None), Failure(429, headers={"retry-after": "0.2"})]
)
def test_a_temporary_failure_is_repeated_and_loses_nothing(failure):
    fail, seen = failing_twice(failure)
    with serving(answering(fail=fail)) as url:
        found = reader(source(url, concurrency=2)).read(rows(*TEXTS), HOW)
    assert [entry.texts for entry in found] == [[text] for text in TEXTS.values()]
    assert all(number == 3 for key, number in seen.items() if key != "None")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_is_left_alone_for_as_long_as_it_asks(form):
    times, done = [], threading.Event()

    def fail(path, body):
        if "Sort." not in str(body.get("messages")):
            return None
        times.append(time.time())
        if done.is_set():
            return None
        done.set()
        asked = "2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        return Failure(429, headers={"retry-after": asked})

    with serving(answering(fail=fail)) as url:
        reader(source(url)).read(rows("Sort."), HOW)
    assert times[1] - times[0] >= 1.9


def test_the_concurrency_is_used_and_not_exceeded():
    def slow(body):
        time.sleep(0.1)
        return "ok"

    script = Scripted(answer=slow)
    with serving(script) as url:
        reader(source(url, concurrency=4)).read(rows(*(f"Say {n}." for n in range(16))), HOW)
    assert script.most_in_flight == 4


def test_requests_are_spread_over_the_minute():
    times = []
    script = answering(fail=lambda path, body: times.append(time.monotonic()))
    with serving(script) as url:
        made = reader(source(url, requests_per_minute=600))
        times.clear()
        made.read(rows(*(f"Say {n}." for n in range(6))), HOW)
    assert times[-1] - times[0] >= 0.4


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(401, "bad key"), "401: bad key"),
        (Failure(402, "no credit"), "402: no credit"),
        (Failure(429, "quota", code="insufficient_quota"), "raise the account's limit"),
        (Failure(429, headers={"retry-after": "86400"}), "asks to wait 86,400 s"),
        (Failure(503, "down"), "503: down, for 1 s"),
    ],
)
def test_an_unusable_server_ends_the_stage_and_blames_no_row(tmp_path, failure, words):
    begun = []
    script = answering(fail=lambda path, body: failure if begun else None)
    with serving(script) as url:
        made = reader(source(url, retry_seconds=1))
        begun.append(True)
        guard = CrashGuard(Folder.at(str(tmp_path)))
        for _ in range(3):
            with pytest.raises(EndpointError, match=words) as error, guard.shard(0, 1) as attempt:
                attempt.run(lambda places: made.read(rows("Sort."), HOW))
            assert not isinstance(error.value, EngineDeadError)
            assert list(tmp_path.iterdir()) == []


def test_a_request_that_fails_while_others_succeed_is_the_rows_fault():
    fail = lambda path, body: Failure(500, "NaN") if "7" in str(body.get("messages")) else None  # noqa: E731
    with serving(answering(fail=fail)) as url:
        found = reader(source(url, retry_seconds=1)).read(rows("Say 7.", "Sort."), HOW)
    assert [entry.refused and "500: NaN" in entry.refused for entry in found] == [True, None]


def asked(config, key=None, how=HOW):
    return ask_source(config, key, how, tokens_of(config))


def test_what_a_server_gives_is_found_by_first_requests(tokenizers):
    with serving(answering(tokenizer=byte_level_tokenizer())) as url:
        found = asked(source(url, tokenizers / "bpe"))
    assert found == EndpointFacts(MODEL, "/models/big", 256, K, forces=True, token_ids=True)


def test_what_a_server_does_not_take_is_left_out(tokenizers):
    def fail(path, body):
        if "max_tokens" in body and path == CHAT:
            return Failure(400, "Use 'max_completion_tokens' instead.", parameter="max_tokens")
        return Failure(422, "extra: seed", parameter="seed") if "seed" in body else None

    wanted = ReadSettings(GenerationConfig(), 64, 0)
    script = answering(tokenizer=byte_level_tokenizer(), knows_ids=False, fail=fail, listed=None)
    with serving(script) as url:
        found = asked(source(url, tokenizers / "bpe"), how=wanted)
        assert found == EndpointFacts(MODEL, None, None, 20, seed=False, length_field="max_completion_tokens")
        (entry,) = reader(source(url, tokenizers / "bpe"), wanted).read(rows("Sort."), wanted)
    assert entry.answers[0].topk.top_k == 64
    assert np.isfinite(entry.answers[0].topk.logprobs[0]).sum() <= 20
    assert "at most 20 tokens" in found.line(source(url, tokenizers / "bpe"), 64)


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_does_not_know_teacher_forcing_does_none(tokenizers, status):
    fail = lambda path, body: Failure(status, "no such thing") if path == COMPLETIONS else None  # noqa: E731
    with serving(answering(tokenizer=byte_level_tokenizer(), fail=fail)) as url:
        assert not asked(source(url, tokenizers / "bpe", retry_seconds=1)).forces


def test_an_outage_is_not_taken_for_a_server_without_teacher_forcing(tokenizers):
    fail = lambda path, body: Failure(503, "down") if path == COMPLETIONS else None  # noqa: E731
    with serving(answering(tokenizer=byte_level_tokenizer(), fail=fail)) as url, pytest.raises(UserError, match="down"):
        asked(source(url, tokenizers / "bpe", retry_seconds=1))


def test_a_server_without_log_probabilities_gives_texts(tokenizers):
    config_of = lambda url: source(url, tokenizers / "bpe")  # noqa: E731
    with serving(answering(knows_ids=False)) as url:
        found = asked(config_of(url))
        assert (found.top_logprobs, found.forces) == (None, False)
        read = reader(config_of(url)).read(rows(*TEXTS), HOW)
    assert [entry.texts for entry in read] == [[text] for text in TEXTS.values()]
    assert count(read)["unscored_answers"] == 3


@pytest.mark.parametrize(
    ("settings", "script", "words"),
    [
        ({"model": "other"}, {}, r"sources.big.endpoint.model: .* serves no 'other'; it serves acme/big"),
        ({}, {"fail": lambda path, body: Failure(401, "no key")}, r"sources.big.endpoint: .*401: no key"),
        (
            {},
            {"fail": lambda path, body: Failure(400, "temperature must be 1") if body else None},
            "temperature must be 1",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_before_the_run(settings, script, words):
    with serving(answering(**script)) as url, pytest.raises(UserError, match=words):
        asked(source(url, **settings))


def test_another_tokenizer_than_the_servers_is_refused(tokenizers):
    with (
        serving(answering(tokenizer=byte_level_tokenizer())) as url,
        pytest.raises(UserError, match=r"sources.big.endpoint.tokenizer: .*are not those of"),
    ):
        asked(source(url, tokenizers / "sp"))


def test_nothing_listens_there():
    with serving(answering()) as url:
        pass
    with pytest.raises(UserError, match=r"sources.big.endpoint: .*no answer \(ConnectError"):
        asked(source(url, retry_seconds=0.5))


def test_a_server_that_changed_is_refused_at_the_start_of_a_stage():
    script = answering()
    with serving(script) as url:
        config = source(url)
        access = EndpointAccess(asked(config), None, HOW, 257)
        access.connect(BYTE_TOKENIZER, config, OwnTemplate()).close()
        script.listed = {"root": "/models/other"}
        with pytest.raises(EngineError, match="root was /models/big, is now /models/other"):
            access.connect(BYTE_TOKENIZER, config, OwnTemplate())


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    config = source("http://127.0.0.1:9/v1", key_env="BIG_KEY")
    with pytest.raises(UserError, match=r"sources.big.endpoint.key_env: the environment variable BIG_KEY is not set"):
        read_key(config.endpoint, "sources.big.endpoint")
    monkeypatch.setenv("BIG_KEY", "sk-secret")
    key = read_key(config.endpoint, "sources.big.endpoint")
    script = answering()
    with serving(script) as url:
        config = source(url, key_env="BIG_KEY")
        made = reader(config, key=key)
        made.read(rows("Sort."), HOW)
        shown = f"{EndpointAccess(made.engine.facts, key, HOW, 257)!r} {config.model_dump_json()}"
        script.fail = lambda path, body: Failure(401, "bad key")
        with pytest.raises(EndpointError) as error:
            made.read(rows("Sort."), HOW)
    assert isinstance(key, SecretStr)
    assert {headers.get("authorization") for _, _, headers in script.asked} == {"Bearer sk-secret"}
    assert "sk-secret" not in f"{shown} {error.value}"
