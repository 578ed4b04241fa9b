"""The served models over real HTTP: OpenAI's formats, reasoning, tools, keys and limits, dying replicas, rollouts, shutdown."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil
import pytest
import torch
import yaml
from pydantic import SecretStr
from ray import serve
from transformers import AutoConfig

from cluster.harness.node_processes import free_port
from profuser.engines.base import ReadSettings
from profuser.engines.collecting import SourceReader
from profuser.engines.endpoint.access import ask_source, read_tokens
from profuser.engines.endpoint.engine import EndpointEngine
from profuser.engines.transformers import TransformersEngine
from profuser.errors import UserError
from profuser.models.lab_paths import assets_path
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig, OwnTemplate, SourceConfig
from profuser.serving.options import ServeConfig
from tests.engines.test_collecting import corpus
from tests.load import chat, load, replica_pids
from tests.serving import thinker

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

NAME, OTHER, THINKER, POET = "lab-fused", "mpt", "thinker", "poet"
NAMES = [NAME, OTHER, THINKER, POET]
MESSAGES = [{"role": "user", "content": "What is the capital of Morland?"}]
NUM_TOKENS = 24
KEY, SMALL_KEY = "sk-of-the-tests-0123456789", "sk-small-of-the-tests-0123"
QUESTIONS = [f"What is {number} plus 5?" for number in range(20)]


def folder_of(source: str) -> str:
    return str(assets_path() / "sources" / source)


def model(name: str, source: str, **more) -> dict:
    return {"name": name, "model": folder_of(source), "max_model_len": 128, "num_cpus": 0.5, **more}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    small = {"name": "small", "key": SMALL_KEY, "concurrency": 2, "max_tokens": 30, "max_prompt_tokens": 40}
    file.write_text(yaml.safe_dump([{"name": "tests", "key": KEY}, small | {"max_body_bytes": 2000}]))
    return file


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory):
    """Returns the settings of a model that reasons and calls tools, with a LoRA adapter; its parsers are chosen automatically."""
    folder = tmp_path_factory.mktemp("thinker")
    base = thinker.thinker(folder / "base")
    adapters = {POET: thinker.poet(base, folder / "poet")}
    return {"name": THINKER, "model": base, "num_cpus": 0.5, "adapters": adapters}


@pytest.fixture(scope="module")
def settings(keys, reasoning):
    models = [
        model(NAME, "llama", num_replicas=2),
        model(OTHER, "mpt", min_replicas=0, max_ongoing_requests=2, max_queued_requests=2),
        reasoning,
    ]
    return {"models": models, "keys_file": str(keys)}


@pytest.fixture(scope="module")
def url(settings):
    from ray_jobs.runtime.cluster import connected
    from ray_jobs.serving.app import start_server, stop_server

    with connected():
        yield start_server(ServeConfig.parse(settings, "the tests"), "127.0.0.1", free_port())
        stop_server()
        serve.shutdown()


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def test_a_served_model_is_a_source_whose_signals_are_those_of_a_local_engine(url):
    how = ReadSettings(GenerationConfig(max_tokens=NUM_TOKENS), 5, 0)
    endpoint = {"base_url": url, "model": NAME, "tokenizer": folder_of("llama")}
    config = SourceConfig(name="big", endpoint=endpoint)
    tokens = read_tokens(
        folder_of("llama"), config, OwnTemplate(), AutoConfig.from_pretrained(folder_of("llama")).vocab_size
    )
    engine = TransformersEngine(folder_of("llama"), None, EngineConfig(dtype="float32"), tokens.end_ids)
    local = SourceReader(engine, OwnTemplate())
    key = SecretStr(KEY)
    facts = ask_source(config, key, how, tokens)
    served = SourceReader(EndpointEngine(config.endpoint, facts, key, tokens), OwnTemplate())
    rows = corpus("The capital is not known.", "7")
    for mine, other in zip(served.read(rows, how), local.read(rows, how), strict=True):
        assert mine.refused is None
        assert mine.texts == other.texts
        for a, b in ((mine.training, other.training), (mine.answers[0], other.answers[0])):
            assert a.ids.tolist() == b.ids.tolist()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-2)
            np.testing.assert_allclose(a.topk.logprobs[:, 0], b.topk.logprobs[:, 0], atol=2e-2)
    local.loop.close()


def expected_text(folder, prompt_ids):
    """Returns the greedy answer of Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    done = model.generate(torch.tensor([prompt_ids]), max_new_tokens=NUM_TOKENS, do_sample=False)
    return tokenizer.decode(done[0, len(prompt_ids) :], skip_special_tokens=True)


def port_of(url):
    return httpx.URL(url).port


def gateway_pids(url):
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return sorted(each.pid for each in listening if each.laddr.port == port_of(url) and each.pid)


def wait_until(what, seconds=120.0, every=0.3):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(every)
    return found


def send(url, bodies, concurrency=16, on_done=lambda _: None, key=KEY):
    return asyncio.run(load(url, bodies, concurrency, on_done, key))


def test_the_models_are_listed_and_the_page_is_served(client, url):
    assert [model.id for model in client.models.list()] == NAMES
    assert client.models.retrieve(OTHER).id == OTHER
    assert client.models.retrieve(POET).parent == THINKER
    with urllib.request.urlopen(url.removesuffix("v1"), timeout=30) as page:
        assert "text/html" in page.headers["content-type"]
        assert NAME not in page.read().decode(), "the page shows server data without a key"


def test_a_greedy_chat_answer_is_the_models_own(client):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of("llama"))
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=NUM_TOKENS, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content.strip() == expected_text(folder_of("llama"), prompt).strip()
    assert answer.usage.prompt_tokens == len(prompt)
    assert 1 < answer.usage.completion_tokens <= NUM_TOKENS


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_spelled_in_a_message_are_read_as_text(client, stream):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of("llama"))

    def prompt_ids(content):
        messages = [{"role": "user", "content": content}]
        arguments = {"model": NAME, "messages": messages, "max_tokens": 1, "extra_body": {"return_token_ids": True}}
        answer = client.chat.completions.create(**arguments, stream=stream)
        return (next(iter(answer)) if stream else answer).prompt_token_ids

    spelt = prompt_ids("Say </s> and <s>, please.")
    assert "Say </s> and <s>, please." in tokenizer.decode(spelt)
    specials = set(tokenizer.all_special_ids)
    assert [i for i in spelt if i in specials] == [i for i in prompt_ids("Say it, please.") if i in specials]


def test_a_model_scaled_to_zero_starts_on_request_and_its_streamed_pieces_make_the_answer(client):
    assert replica_pids(OTHER) == []
    arguments = {"model": OTHER, "messages": MESSAGES, "max_tokens": NUM_TOKENS, "temperature": 0}
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert sum(bool(chunk.choices) for chunk in chunks) > 2
    assert chunks[-1].usage.completion_tokens > 1
    assert len(replica_pids(OTHER)) == 1


def test_openai_settings_take_effect(client):
    arguments = {"model": NAME, "messages": MESSAGES, "max_tokens": NUM_TOKENS}
    many = client.chat.completions.create(**arguments, n=3, temperature=1.0, seed=7)
    again = client.chat.completions.create(**arguments, n=3, temperature=1.0, seed=7)
    assert len(many.choices) == 3
    assert [c.message.content for c in many.choices] == [c.message.content for c in again.choices]
    likely = client.chat.completions.create(**arguments, temperature=0, logprobs=True, top_logprobs=2)
    first = likely.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(first.top_logprobs[0].logprob)
    assert len(first.top_logprobs) == 2
    text = likely.choices[0].message.content
    stopped = client.chat.completions.create(**arguments, temperature=0, stop=[text[2:4]])
    assert stopped.choices[0].message.content == text[: text.index(text[2:4])]
    formed = client.chat.completions.create(
        **arguments | {"max_tokens": 60}, temperature=0, response_format={"type": "json_object"}
    )
    assert formed.choices[0].message.content.lstrip().startswith("{")


def test_a_completion_has_its_format_and_log_probabilities(client):
    answer = client.completions.create(model=NAME, prompt="Sort the", max_tokens=5, temperature=0, logprobs=2)
    assert answer.object == "text_completion"
    assert len(answer.choices[0].logprobs.token_logprobs) == 5
    assert answer.choices[0].finish_reason == "length"


def test_the_asynchronous_client_streams_too(url):
    async def streamed():
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
        arguments = {"model": NAME, "messages": MESSAGES, "max_tokens": NUM_TOKENS, "temperature": 0}
        whole = await client.chat.completions.create(**arguments)
        pieces = [chunk async for chunk in await client.chat.completions.create(**arguments, stream=True)]
        return whole.choices[0].message.content, "".join(piece.choices[0].delta.content or "" for piece in pieces)

    whole, pieces = asyncio.run(streamed())
    assert whole == pieces


GREEDY = {"model": THINKER, "temperature": 0}
SORT, ASK = [thinker.user(thinker.QUESTION)], [thinker.user(thinker.CITY)]
SILENT = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}


def texts_of(message):
    """Returns the reasoning of a message or a delta, and its text."""
    return (getattr(message, "reasoning", None) or ""), (message.content or "")


def test_reasoning_is_separate_from_the_answer(client):
    message = client.chat.completions.create(**GREEDY, messages=SORT).choices[0].message
    assert [each.strip() for each in texts_of(message)] == [thinker.THOUGHT, thinker.ANSWER]
    chunks = list(client.chat.completions.create(**GREEDY, messages=SORT, stream=True))
    parts = [texts_of(chunk.choices[0].delta) for chunk in chunks]
    assert ["".join(each).strip() for each in zip(*parts, strict=True)] == [thinker.THOUGHT, thinker.ANSWER]
    for off in (SILENT, {"reasoning_effort": "none"}):
        message = client.chat.completions.create(**GREEDY, messages=SORT, **off).choices[0].message
        assert texts_of(message) == ("", thinker.ANSWER)
        chunks = client.chat.completions.create(**GREEDY, messages=SORT, stream=True, **off)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == thinker.ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(client, stream):
    arguments = {**GREEDY, "tools": [thinker.TOOL], "stream": stream}
    first = client.chat.completions.create(**arguments, messages=ASK)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in first]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        name, given = (
            next(filter(None, (call.function.name for call in calls))),
            "".join(call.function.arguments or "" for call in calls),
        )
    else:
        assert first.choices[0].finish_reason == "tool_calls"
        (call,) = first.choices[0].message.tool_calls
        name, given = call.function.name, call.function.arguments
        assert texts_of(first.choices[0].message)[0].strip() == "I ask."
    assert (name, json.loads(given)) == ("weather", {"city": "Oslo"})
    turns = [*ASK, thinker.called(), {"role": "tool", "content": thinker.WEATHER, "tool_call_id": "1"}]
    turns[1]["tool_calls"][0]["function"]["arguments"] = given
    second = client.chat.completions.create(**arguments, messages=turns)
    parts = [
        texts_of(each.choices[0].delta if stream else each.choices[0].message)
        for each in (second if stream else [second])
    ]
    assert "".join(text for _, text in parts).strip() == thinker.REPORT


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_tool_call_follows_the_tools_schema(client, choice):
    tools = [thinker.TOOL]
    answer = client.chat.completions.create(
        **GREEDY, messages=SORT, tools=tools, tool_choice=choice, max_tokens=90, **SILENT
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_the_responses_api_reasons_calls_a_tool_and_streams(client):
    answer = client.responses.create(**GREEDY, input=thinker.QUESTION)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text.strip() == thinker.THOUGHT
    assert answer.output_text.strip() == thinker.ANSWER
    assert answer.usage.output_tokens > 10
    events = list(client.responses.create(**GREEDY, input=thinker.QUESTION, stream=True))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces).strip() == thinker.ANSWER
    assert (
        "".join(event.delta for event in events if event.type == "response.reasoning_text.delta").strip()
        == thinker.THOUGHT
    )
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    tool = {"type": "function", **thinker.TOOL["function"]}
    asked = client.responses.create(**GREEDY, input=thinker.CITY, tools=[tool])
    (call,) = [item for item in asked.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": thinker.WEATHER}
    turns = [thinker.user(thinker.CITY), call.model_dump(exclude_none=True), result]
    assert client.responses.create(**GREEDY, input=turns, tools=[tool]).output_text.strip() == thinker.REPORT


def test_an_adapter_answers_under_its_own_name_also_in_a_batch_with_its_model(client, url):
    answer = client.chat.completions.create(model=POET, temperature=0, messages=SORT)
    assert (answer.model, texts_of(answer.choices[0].message)[1].strip()) == (POET, thinker.POEM)
    assert (
        client.responses.create(model=POET, temperature=0, input=thinker.QUESTION).output_text.strip() == thinker.POEM
    )
    again = client.chat.completions.create(**GREEDY, messages=SORT).choices[0].message
    assert texts_of(again)[1].strip() == thinker.ANSWER
    names = [THINKER, POET, POET, THINKER] * 6
    answers = send(url, [chat(name, thinker.QUESTION, 60) for name in names], len(names))
    assert [a.text.strip() for a in answers] == [{THINKER: thinker.ANSWER, POET: thinker.POEM}[name] for name in names]


def test_what_is_not_configured_is_refused_with_our_setting(client, url):
    arguments = {"model": NAME, "messages": MESSAGES}
    with pytest.raises(openai.BadRequestError, match="profuser serve --tool-parser NAME") as caught:
        client.chat.completions.create(**arguments, tools=[thinker.TOOL])
    assert (caught.value.param, caught.value.code) == ("tools", "not_configured")
    with pytest.raises(openai.BadRequestError, match="reads no image"):
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        )
    with pytest.raises(openai.BadRequestError, match="no setting of reasoning"):
        client.chat.completions.create(**arguments, reasoning_effort="low", stream=True)
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        client.responses.create(model=NAME, input="Hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match=r"serve --model. or .--lora. adds one"):
        client.chat.completions.create(**arguments | {"model": "sonnets"})
    small = openai.OpenAI(base_url=url, api_key=SMALL_KEY, max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match="this key may have 30"):
        small.responses.create(model=THINKER, input=thinker.QUESTION, max_output_tokens=40)
    with pytest.raises(openai.UnprocessableEntityError, match="this key may send 40"):
        small.responses.create(model=THINKER, input=thinker.QUESTION * 9)
    assert small.responses.create(model=THINKER, input=thinker.QUESTION, temperature=0).usage.output_tokens <= 30


def test_two_hundred_requests_in_a_row_all_succeed(client):
    first = client.completions.create(model=NAME, prompt="Sort", max_tokens=2, temperature=0).choices[0].text
    for _ in range(200):
        answer = client.completions.create(model=NAME, prompt="Sort", max_tokens=2, temperature=0)
        assert answer.choices[0].text == first


def test_refused_requests_have_their_status_in_openais_format(url, client):
    small = openai.OpenAI(base_url=url, api_key=SMALL_KEY, max_retries=0)
    nobody = openai.OpenAI(base_url=url, api_key="sk-nobody", max_retries=0)
    arguments = {"model": NAME, "messages": MESSAGES, "max_tokens": 5}
    with pytest.raises(openai.AuthenticationError):
        nobody.chat.completions.create(**arguments)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(**arguments | {"model": "nobody"})
    with pytest.raises(openai.UnprocessableEntityError, match="40 tokens"):
        small.chat.completions.create(**arguments | {"max_tokens": 40})
    long = [{"role": "user", "content": "What is the capital of Morland? " * 9}]
    with pytest.raises(openai.UnprocessableEntityError, match="this key may send 40"):
        small.chat.completions.create(**arguments | {"messages": long})
    with pytest.raises(openai.APIStatusError, match="larger than 2,000 bytes") as caught:
        small.chat.completions.create(**arguments | {"messages": [{"role": "user", "content": "a" * 3000}]})
    assert caught.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match=r"context|length"):
        client.chat.completions.create(**arguments | {"messages": [{"role": "user", "content": "a b c " * 200}]})
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(**arguments | {"max_tokens": -3})


def test_a_key_over_its_limit_gets_429_and_a_disconnecting_client_frees_its_slot(url):
    client = openai.OpenAI(base_url=url, api_key=SMALL_KEY, max_retries=0)
    arguments = {
        "model": NAME,
        "messages": MESSAGES,
        "max_tokens": 30,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    held = [client.chat.completions.create(**arguments, stream=True) for _ in range(2)]
    started = time.monotonic()
    refused = send(url, [chat(NAME, QUESTIONS[0], 30) for _ in range(8)], 8, key=SMALL_KEY)
    # The answers are short: one of the two may have ended by now, but eight more never fit.
    assert 429 in {answer.status for answer in refused}
    assert time.monotonic() - started < 30
    for stream in held:
        stream.close()
    wait_until(lambda: _succeeds(client, arguments), 30)


def _succeeds(client, arguments):
    try:
        return client.chat.completions.create(**arguments)
    except openai.RateLimitError as error:
        return error.response.headers["retry-after"] != "1"


def test_overload_is_refused_at_once_and_accepted_requests_are_answered(url):
    bodies = [
        chat(OTHER, question, NUM_TOKENS, ignore_eos=True, stream=bool(n % 2)) for n, question in enumerate(QUESTIONS)
    ]
    send(url, bodies[:1], 1)  # the model is loaded
    answers = send(url, bodies, len(bodies))
    assert {answer.status for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status == 429]
    assert max(answer.seconds for answer in refused) < min(10, max(answer.seconds for answer in answers))
    assert all("too many requests" in answer.text for answer in refused)
    assert [answer.error for answer in answers] == [None] * len(answers)


def test_no_fuzzed_request_causes_a_server_error(url, tmp_path):
    headers = ["--header", f"Authorization: Bearer {SMALL_KEY}"]
    wanted = ["--checks", "not_a_server_error", "--max-examples", "20", "--generation-deterministic", "--workers", "1"]
    document = url.replace("/v1", "/openapi.json")
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", document, *headers, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]


def test_keys_are_added_and_removed_without_a_restart(url, keys, client):
    before = keys.read_text()
    new = openai.OpenAI(base_url=url, api_key="sk-new-of-the-tests-012345", max_retries=0)
    keys.write_text(yaml.safe_dump(["sk-new-of-the-tests-012345"]))
    assert [model.id for model in new.models.list()] == NAMES
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    keys.write_text(before)
    assert client.models.list()


def test_a_replica_killed_under_load_loses_no_answer(url):
    bodies = [chat(NAME, question, 16, ignore_eos=True) for question in QUESTIONS]
    alone = [answer.text for answer in send(url, bodies, 1)]
    wait_until(lambda: len(replica_pids(NAME)) == 2)
    many = [body | {"stream": bool(number % 2)} for number, body in enumerate(bodies * 15)]
    killed = []

    def on_done(number: int) -> None:
        if number == len(many) // 3:
            killed.append(replica_pids(NAME)[0])
            os.kill(killed[0], signal.SIGKILL)

    answers = send(url, many, 24, on_done)
    assert killed
    assert [(a.status, a.error) for a in answers] == [(200, None)] * len(many)
    assert [a.text for a in answers] == alone * 15
    wait_until(lambda: len(replica_pids(NAME)) == 2 and killed[0] not in replica_pids(NAME))


def test_a_killed_gateway_listens_again(url, client):
    (killed,) = gateway_pids(url)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: gateway_pids(url) not in ([], [killed]))
    assert [model.id for model in client.models.list()] == NAMES


def test_several_gateways_share_the_port(url, settings):
    from ray_jobs.serving.app import deploy

    address = ("127.0.0.1", port_of(url))
    (first,), replicas = gateway_pids(url), replica_pids(NAME)
    deploy(ServeConfig.parse(settings | {"num_gateways": 2}, "the tests"), *address)
    assert len(gateway_pids(url)) == 2
    assert first in gateway_pids(url)
    assert sorted(replica_pids(NAME)) == sorted(replicas), "unchanged replicas were replaced"
    answers = send(url, [chat(NAME, question, 4) for question in QUESTIONS], len(QUESTIONS))
    assert [(a.status, a.error) for a in answers] == [(200, None)] * len(QUESTIONS)
    deploy(ServeConfig.parse(settings, "the tests"), *address)
    wait_until(lambda: len(gateway_pids(url)) == 1)


def test_a_new_version_is_rolled_out_without_a_failed_request(url, settings):
    from ray_jobs.serving.app import deploy

    bodies = [chat(NAME, question, 8) for question in QUESTIONS]
    before = send(url, bodies, 1)
    newer = ServeConfig.parse(settings | {"models": [model(NAME, "neox", num_replicas=2)]}, "the tests")
    rollout = threading.Thread(target=deploy, args=(newer, "127.0.0.1", port_of(url)))
    rollout.start()
    answers = []
    while rollout.is_alive():
        answers += send(url, bodies[:4], 1)
        time.sleep(0.2)
    after = send(url, bodies, 1)
    assert [(a.status, a.error) for a in answers + after] == [(200, None)] * len(answers + after)
    assert len(answers) > len(bodies), "there was no load during the rollout"
    assert all(a.text != b.text for a, b in zip(before, after, strict=True))


def metrics(url):
    request = urllib.request.Request(url.replace("/v1", "/metrics"), headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_metrics_count_requests_by_model_and_key_name(url):
    text = metrics(url)
    assert f'profuser_requests_total{{key="tests",model="{NAME}",path="/v1/chat/completions",status="200"}}' in text
    assert KEY not in text


def test_user_errors_are_one_line(url, settings, tmp_path):
    from ray_jobs.serving.app import check_serving, start_server

    config = ServeConfig.parse(settings, "the tests")
    with pytest.raises(UserError, match="choose another --port"):
        start_server(config, "127.0.0.1", port_of(url))
    with pytest.raises(UserError, match="is not a model"):
        check_serving(
            ServeConfig.parse(settings | {"models": [{"name": "a", "model": str(tmp_path)}]}, ""), "127.0.0.1"
        )
    with pytest.raises(UserError, match="no API key: set PROFUSER_API_KEYS"):
        check_serving(ServeConfig.parse(settings | {"keys_file": None}, ""), "127.0.0.1")
    with pytest.raises(UserError, match=r"--insecure requires no key, so it listens on 127.0.0.1 only, not on 0\.0"):
        check_serving(ServeConfig.parse(settings | {"insecure": True}, ""), "0.0.0.0")


def test_a_stopping_server_finishes_running_answers_and_accepts_no_more(url):
    from ray_jobs.serving.app import stop_server

    bodies = [
        chat(NAME, question, 100, ignore_eos=True, stream=bool(n % 2)) for n, question in enumerate(QUESTIONS[:8])
    ]
    answers = []
    load = threading.Thread(target=lambda: answers.extend(send(url, bodies, len(bodies))))
    load.start()
    # Tiny models answer within a second: slower polling would miss it.
    wait_until(lambda: f'profuser_requests_in_flight{{key="tests"}} {len(bodies)}.0' in metrics(url), every=0.01)
    stop_server()
    load.join()
    assert [(a.status, a.error) for a in answers] == [(200, None)] * len(bodies)
    assert gateway_pids(url) == []
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"{url}/chat/completions", json=bodies[0])
