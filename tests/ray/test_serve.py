"""The served model over real HTTP: OpenAI's shapes, streaming, errors, and two hundred requests in a row."""

import json
import socket
import urllib.error
import urllib.request

import openai
import pytest
import torch

from profuser.errors import UserError
from profuser.lab import assets_path

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

NAME = "fused"
MESSAGES = [{"role": "user", "content": "What is the capital of Morland?"}]
NUM_TOKENS = 24


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder():
    return str(assets_path() / "sources" / "llama")


@pytest.fixture(scope="module")
def url(folder):
    from ray_jobs.cluster import connected
    from ray_jobs.serve import ServeOptions, start_server, stop_server

    with connected():
        yield start_server(ServeOptions(model=folder, served_model_name=NAME, port=free_port(), max_model_len=128))
        stop_server()


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def expected_text(folder, prompt_ids):
    """The greedy answer of Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    done = model.generate(torch.tensor([prompt_ids]), max_new_tokens=NUM_TOKENS, do_sample=False)
    return tokenizer.decode(done[0, len(prompt_ids) :], skip_special_tokens=True)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == [NAME]


def test_a_greedy_chat_answer_is_the_models_own(client, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=NUM_TOKENS, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content.strip() == expected_text(folder, prompt).strip()
    assert answer.usage.prompt_tokens == len(prompt)
    assert 1 < answer.usage.completion_tokens <= NUM_TOKENS


def test_a_completion_has_its_shape_and_log_probabilities(client):
    answer = client.completions.create(model=NAME, prompt="Sort the", max_tokens=5, temperature=0, logprobs=2)
    assert answer.object == "text_completion"
    assert len(answer.choices[0].logprobs.token_logprobs) == 5
    assert answer.choices[0].finish_reason == "length"


def test_streamed_pieces_make_the_whole_answer(client):
    wish = {"model": NAME, "messages": MESSAGES, "max_tokens": NUM_TOKENS, "temperature": 0}
    whole = client.chat.completions.create(**wish).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**wish, stream=True)]
    assert len(pieces) > 2
    assert "".join(pieces) == whole


def test_two_hundred_requests_in_a_row_all_succeed(client):
    first = client.completions.create(model=NAME, prompt="Sort", max_tokens=2, temperature=0).choices[0].text
    for _ in range(200):
        answer = client.completions.create(model=NAME, prompt="Sort", max_tokens=2, temperature=0)
        assert answer.choices[0].text == first


def test_an_unknown_model_is_404_in_openais_format(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="a", max_tokens=1)
    assert "nobody" in caught.value.body["message"]


@pytest.mark.parametrize("body", [b"{", b'{"model": "fused"}', b'{"model": "fused", "prompt": "a", "max_tokens": -3}'])
def test_a_bad_body_is_the_clients_fault_and_shows_no_traceback(url, body):
    request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    text = caught.value.read().decode()
    assert caught.value.code in (400, 422)
    assert "error" in json.loads(text)
    assert "Traceback" not in text


def test_a_taken_port_and_a_folder_without_a_model_are_said_in_a_line(url, folder, tmp_path):
    from ray_jobs.serve import ServeOptions, start_server

    taken = int(url.split(":")[2].split("/")[0])
    with pytest.raises(UserError, match="choose another --port"):
        start_server(ServeOptions(model=folder, served_model_name=NAME, port=taken))
    with pytest.raises(UserError, match="is not a model"):
        start_server(ServeOptions(model=str(tmp_path), served_model_name=NAME))
