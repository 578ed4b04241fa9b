"""The gateway: authentication, refusals, logs, metrics and the description of the API."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from profuser.serving.errors import ApiError, overloaded
from profuser.serving.gateway import Gateway
from profuser.serving.options import ServeConfig, ServedModel
from profuser.serving.requests import CHAT, COMPLETIONS, RESPONSES
from tests.serving.fake_backend import (
    ALICE,
    BOB,
    DONE,
    EVENTS,
    JSON,
    PROMPT,
    Fake,
    Head,
    counted,
    error_of,
    event,
    gateway,
    limits,
    logged,
    send,
)

SECRET = "the secret prompt"
ANSWER = b'{"answer": "the secret answer"}'
LOCKED = ["/v1/models", "/v1/models/fused", "/metrics", "/openapi.json", CHAT, COMPLETIONS, RESPONSES]
ORIGIN = "https://pages.example"


@pytest.mark.parametrize("path", LOCKED)
@pytest.mark.parametrize("key", [None, "sk-nobody-has-this-key", f"{ALICE}x"])
def test_a_request_without_a_valid_key_is_refused(tmp_path, path, key):
    to = gateway(tmp_path, Fake(JSON))
    response = send(to, path, key, **({"json": PROMPT} if path in (CHAT, COMPLETIONS, RESPONSES) else {}))
    assert error_of(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert not to.backend.asked
    assert counted(to) == {("", path.replace("fused", "{name:path}"), "", "401"): 1}


@pytest.mark.parametrize("path", ["/", "/health"])
def test_the_playground_and_the_health_check_need_no_key(tmp_path, path):
    response = send(gateway(tmp_path, Fake()), path, key=None)
    assert response.status_code == 200
    assert not [name for name in ("fused", "alice") if name in response.text] or path == "/"
    assert ("default-src 'none'" in response.headers.get("content-security-policy", "")) == (path == "/")


@pytest.mark.parametrize("base", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_keys_clients_on_this_machine_are_answered(tmp_path, base, host):
    to = gateway(tmp_path, Fake(JSON, ANSWER), insecure=True)
    assert send(to, key=None, base=base, client=(host, 5), json=PROMPT).content == ANSWER
    assert counted(to) == {("fused", CHAT, "insecure", "200"): 1}


@pytest.mark.parametrize("path", LOCKED)
@pytest.mark.parametrize(
    ("client", "base"),
    [(("10.0.0.7", 5), "http://127.0.0.1"), (None, "http://127.0.0.1"), (("127.0.0.1", 5), "http://evil.example")],
    ids=["another machine", "unknown", "a page whose name points to this machine"],
)
def test_without_keys_other_clients_are_refused(tmp_path, path, client, base):
    to = gateway(tmp_path, Fake(JSON), insecure=True)
    body = {"json": PROMPT} if path in (CHAT, COMPLETIONS, RESPONSES) else {}
    assert error_of(send(to, path, key=ALICE, client=client, base=base, **body), 403)["code"] == "loopback_only"
    assert not to.backend.asked


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("POST", f"{CHAT}/", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_other_paths_and_methods_are_refused_in_openais_format(tmp_path, method, path, status):
    response = send(gateway(tmp_path, Fake()), path, method=method)
    error_of(response, status)
    assert ("allow" in response.headers) == (status == 405)


def test_the_models_are_listed(tmp_path):
    to = gateway(tmp_path, Fake())
    listed = send(to, "/v1/models").json()
    assert (listed["object"], [card["id"] for card in listed["data"]]) == ("list", ["fused", "org/source"])
    assert send(to, "/v1/models/org/source").json() == listed["data"][1]


@pytest.mark.parametrize(
    ("settings", "sent", "status", "code"),
    [
        ({}, {"content": b"{"}, 400, "invalid_json"),
        ({}, {"content": b"[" * (4 << 20)}, 400, "invalid_json"),
        ({}, {"json": {"model": "none"}}, 404, "model_not_found"),
        ({"max_body_bytes": 50}, {"content": b" " * 51}, 413, "body_too_large"),
        ({}, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ({}, {"content": b"{}", "headers": {"content-type": ""}}, 415, "unsupported_media_type"),
        ({"max_tokens": 9}, {"json": PROMPT | {"max_tokens": 10}}, 422, "too_many_tokens"),
        ({"max_prompt_tokens": 9}, {"json": PROMPT}, 422, "prompt_too_long"),
    ],
)
def test_a_request_above_its_keys_limits_is_refused(tmp_path, settings, sent, status, code):
    to = limits(tmp_path, Fake(JSON, tokens=10), **settings)
    kind = {"content-type": "application/json"}
    response = send(to, **{**sent, "headers": kind | sent.get("headers", {})})
    assert error_of(response, status)["code"] == code
    assert not to.backend.asked
    model = "fused" if code == "prompt_too_long" else ""
    assert counted(to) == {(model, CHAT, "alice", str(status)): 1}


def test_a_body_is_read_only_up_to_the_limit(tmp_path):
    read = []

    async def endless():
        while True:
            read.append(1)
            yield b" " * 10

    kind = {"content-type": "application/json"}
    error_of(send(limits(tmp_path, Fake(), max_body_bytes=50), content=endless(), headers=kind), 413)
    assert len(read) <= 7


@pytest.mark.parametrize(
    ("given", "kept"), [("a-Client.s_own-7", True), ("x" * 65, False), ("a b", False), ("é", False)]
)
def test_a_clients_request_id_is_kept_if_it_is_safe(tmp_path, given, kept):
    to = gateway(tmp_path, Fake(JSON, ANSWER))
    for _ in range(2):
        send(to, json=PROMPT, headers={"X-Request-Id": given.encode()})
    (_, one), (_, two) = to.backend.asked
    assert [one == given, two == given, one == two] == [kept] * 3
    assert one.isascii()
    assert one.isprintable()


BUG = RuntimeError(f"a bug in /srv/secret.py near {ALICE}")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([overloaded("fused")], 429),
        ([ApiError(503, "lost", "replica_lost", retry_after=2.6)], 503),
        ([BUG], 500),
        ([], 500),
        ([b"no head"], 500),
        ([Head(500, "application/json"), b"Traceback: secret.py"], 500),
        ([Head(503, "text/html"), b"Traceback: ", b"secret.py"], 500),
    ],
    ids=["busy", "lost", "bug", "nothing", "no head", "vLLM's 500", "vLLM's 503"],
)
def test_a_failure_before_the_answer_has_a_status_and_reveals_nothing(tmp_path, stream, steps, status):
    to = gateway(tmp_path, Fake(*steps))
    with logged() as lines:
        response = send(to, json=PROMPT | {"stream": stream})
    error = error_of(response, status)
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers.get("retry-after") == {429: "1", 503: "3"}.get(status)
    assert counted(to) == {("fused", CHAT, "alice", str(status)): 1}
    if status == 500:
        assert error["code"] == "internal_error"
        assert "secret" in "".join(lines) or not any("secret" in str(step) for step in steps)


@pytest.mark.parametrize("stream", [False, True])
def test_a_models_refusal_is_passed_on_unchanged(tmp_path, stream):
    refusal = {"error": {"message": "top_p must be in (0, 1]", "type": "BadRequestError", "param": None, "code": 400}}
    body = json.dumps(refusal).encode()
    to = gateway(tmp_path, Fake(Head(400, "application/json"), body[:9], body[9:]))
    assert error_of(send(to, json=PROMPT | {"stream": stream}), 400) == refusal["error"]
    assert counted(to) == {("fused", CHAT, "alice", "400"): 1}


def test_a_bug_anywhere_else_is_a_500_that_reveals_nothing(tmp_path, monkeypatch):
    to = gateway(tmp_path, Fake())
    monkeypatch.setattr(to, "_card", lambda name: {}["a secret"])
    with logged() as lines, pytest.raises(KeyError):  # raised again for the server's own log, after the response
        send(to, "/v1/models")
    assert "a secret" in "".join(lines)


@pytest.mark.parametrize("log_prompts", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_logged_only_if_requested(tmp_path, log_prompts, stream):
    steps = [EVENTS, event("the secret answer"), DONE] if stream else [JSON, ANSWER]
    with logged() as lines:
        to = gateway(tmp_path, Fake(*steps), log_prompts=log_prompts)
        send(to, json=PROMPT | {"stream": stream})
        send(to, json=PROMPT | {"model": SECRET})
        send(to, json=PROMPT, key=f"{ALICE}x")
        send(gateway(tmp_path, Fake(overloaded("fused"))), json=PROMPT)
    text = "\n".join(lines)
    assert f"{CHAT} fused key=alice 200 " in text
    assert f"{CHAT} fused key=alice 429 " in text
    assert [SECRET in text, "the secret answer" in text] == [log_prompts and not stream] * 2
    assert ALICE not in text


def test_requests_are_counted_by_model_key_and_status(tmp_path):
    to = gateway(tmp_path, Fake(EVENTS, event("a"), DONE))
    for key, body in ((ALICE, PROMPT), (ALICE, PROMPT), (BOB, {"model": "org/source", "stream": True}), (BOB, {})):
        send(to, json=body, key=key)
    response = send(to, "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert not any(key in response.text for key in (ALICE, BOB))
    families = {family.name: family.samples for family in text_string_to_metric_families(response.text)}
    counts = [sample for sample in families["profuser_requests"] if sample.name.endswith("_total")]
    assert {(each.labels["model"], each.labels["key"], each.labels["status"]): each.value for each in counts} == {
        ("fused", "alice", "200"): 2,
        ("org/source", "bob", "200"): 1,
        ("", "bob", "400"): 1,
    }
    assert counted(to, "profuser_request_seconds_count") == {("fused",): 2, ("org/source",): 1}
    assert counted(to, "profuser_first_piece_seconds_count") == {("org/source",): 1}
    assert counted(to, "profuser_requests_in_flight") == {("alice",): 0, ("bob",): 0}


@pytest.mark.parametrize(("listed", "origin"), [((), ORIGIN), ((ORIGIN,), "https://evil.example"), ((ORIGIN,), ORIGIN)])
def test_only_pages_of_listed_origins_may_call(tmp_path, listed, origin):
    allowed = ORIGIN if listed and origin == ORIGIN else None
    to = gateway(tmp_path, Fake(BUG), cors_origins=listed)
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-os"
    before = send(to, key=None, method="OPTIONS", headers=asks)
    failed = send(to, json=PROMPT, headers={"Origin": origin})
    for response in (before, failed, send(to, json=PROMPT, key=None, headers={"Origin": origin})):
        assert response.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in response.headers
    assert before.is_success == bool(allowed)


def test_an_adapter_is_listed_and_answered_by_its_model(tmp_path):
    models = (ServedModel(name="fused", model="-", adapters={"poems": "/poems"}),)
    config = ServeConfig(models=models, insecure=True)
    backend = Fake(JSON, ANSWER)
    to = Gateway(config.gateway, backend, None)
    cards = send(to, "/v1/models", key=None).json()["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [("fused", None), ("poems", "fused")]
    for path in (CHAT, COMPLETIONS, RESPONSES):
        assert send(to, path, key=None, json=PROMPT | {"model": "poems"}).content == ANSWER
    assert {(request.model, request.served) for request, _ in backend.asked} == {("poems", "fused")}
    error = error_of(send(to, key=None, json=PROMPT | {"model": "sonnets"}), 404)
    assert "fused, poems (`serve --model` or `--lora` adds one)" in error["message"]


def test_a_response_has_the_limits_of_its_key(tmp_path):
    to = limits(tmp_path, Fake(JSON, ANSWER), max_tokens=30, max_prompt_tokens=5)
    body = {"model": "fused", "input": "Hi", "instructions": "Be brief."}
    assert send(to, RESPONSES, json=body).content == ANSWER
    ((request, _),) = to.backend.asked
    assert json.loads(request.body) == body | {"max_output_tokens": 30}
    assert request.questions == [body]
    assert error_of(send(to, RESPONSES, json=body | {"max_output_tokens": 31}), 422)["param"] == "max_output_tokens"
    to.backend.tokens = 6
    assert error_of(send(to, RESPONSES, json=body), 422)["code"] == "prompt_too_long"


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_stored_responses_do_not_exist_and_the_answer_says_why(tmp_path, method):
    path = f"{RESPONSES}/resp_1{'/cancel' if method == 'POST' else ''}"
    error = error_of(send(gateway(tmp_path, Fake()), path, method=method), 404)
    assert "keeps no responses: send the whole conversation" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_without_the_path_is_a_501_with_the_reason(tmp_path, stream):
    to = gateway(tmp_path, Fake(Head(501, "application/json"), b"{}"))
    error = error_of(send(to, RESPONSES, json={"model": "fused", "input": "Hi", "stream": stream}), 501)
    assert error["message"].startswith("/v1/responses: the installed vLLM does not offer this")
