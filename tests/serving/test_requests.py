"""Request bodies: invalid ones are refused, and no request gets more tokens than its key allows, however it is written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.serving.errors import ApiError
from profuser.serving.options import Limits
from profuser.serving.requests import CHAT, COMPLETIONS, ApiRequest, check_prompt, read_request

MODELS = ["fused", "org/source"]
PATHS = [CHAT, COMPLETIONS]


def read(body: Any, path: str = CHAT, **limits: int) -> ApiRequest:
    raw = body if isinstance(body, bytes) else json.dumps({"model": "fused", **body}).encode()
    return read_request(path, raw, MODELS, Limits(**limits))


def refused(body: Any, path: str = CHAT, **limits: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, path, **limits)
    assert "\n" not in caught.value.message
    return caught.value


NO_JSON = {
    "nothing": b"",
    "cut off": b'{"model": "fused"',
    "two of them": b'{"model": "fused"} {}',
    "another encoding": '{"model": "fused"}'.encode("utf-16"),
    "no UTF-8": b'{"model": "fused", "user": "\xff"}',
    "half a character": b'{"model": "fused", "user": "\xed\xa0\x80"}',
    "NaN": b'{"model": "fused", "temperature": NaN}',
    "infinity": b'{"model": "fused", "temperature": -Infinity}',
    "an endless number": b'{"model": "fused", "n": ' + b"1" * 5000 + b"}",
    "a list": b'["fused"]',
    "null": b"null",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_a_body_that_is_not_a_json_object_is_refused(body):
    error = refused(body)
    assert (error.status, error.code) == (400, "invalid_json")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"model": "fused", "a": [', b'[{"a":'])
def test_megabytes_of_brackets_are_refused(opening):
    assert refused(opening * ((4 << 20) // len(opening)), max_tokens=1).status == 400


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,0-.eE\\un', max_size=20).map(str.encode))
def test_random_bytes_are_refused_with_400(body):
    assert refused(body, max_tokens=1).status == 400


@pytest.mark.parametrize("model", [None, 1, True, ["fused"], {}])
def test_a_request_without_a_model_is_refused(model):
    error = refused({"model": model})
    assert (error.status, error.param) == (400, "model")
    assert "fused, org/source" in error.message


@pytest.mark.parametrize("model", ["", "Fused", "../fused", "fused\n", "\ud800", "x" * 10_000])
def test_the_error_for_an_unknown_model_lists_the_available_ones(model):
    error = refused({"model": model})
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "fused, org/source" in error.message
    assert len(json.dumps(error.body, ensure_ascii=False).encode()) < 300


@pytest.mark.parametrize("path", PATHS)
def test_without_a_limit_a_request_is_forwarded_byte_for_byte(path):
    raw = b'{ "model":"org/source", "max_tokens" : null, "n":"3", "x":[{}] }'
    request = read(raw, path)
    assert (request.body, request.model, request.path) == (raw, "org/source", path)


BOUNDS = [
    (CHAT, {}, {"max_completion_tokens": 100}),
    (CHAT, {"n": 4}, {"max_completion_tokens": 25}),
    (CHAT, {"max_tokens": None, "max_completion_tokens": None}, {"max_completion_tokens": 100}),
    (COMPLETIONS, {}, {"max_tokens": 16}),
    (COMPLETIONS, {"max_tokens": None}, {"max_tokens": 16}),
    (COMPLETIONS, {"n": 10}, {"max_tokens": 10}),
    (COMPLETIONS, {"prompt": ["a", "b"], "n": 5}, {"max_tokens": 10}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}, {"max_tokens": 16}),
]


@pytest.mark.parametrize(("path", "fields", "more"), BOUNDS)
def test_a_request_without_a_bound_gets_one_within_the_limit(path, fields, more):
    request = read(fields, path, max_tokens=100)
    assert json.loads(request.body) == {"model": "fused", **fields, **more} == request.fields


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 100}),
        (CHAT, {"max_completion_tokens": 50, "n": 2}),
        (COMPLETIONS, {"max_tokens": 100, "prompt": [1, 2, 3]}),
        (COMPLETIONS, {"max_tokens": 50, "prompt": [[1], [2]]}),
    ],
)
def test_a_request_within_the_limit_is_unchanged(path, fields):
    assert json.loads(read(fields, path, max_tokens=100).body) == {"model": "fused", **fields}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"max_tokens": 101}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 101, "max_tokens": 1}, "max_completion_tokens"),
        (CHAT, {"max_completion_tokens": 1, "max_tokens": 101}, "max_completion_tokens"),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 51, "n": 2}, "max_tokens"),
        (CHAT, {"n": 101}, "n"),
        (CHAT, {"n": 10**4000}, "n"),
        (COMPLETIONS, {"max_tokens": 51, "prompt": ["a", "b"]}, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 26, "prompt": [[1], [2]], "n": 2}, "max_tokens"),
        (COMPLETIONS, {"prompt": ["a"] * 101}, "n"),
    ],
)
def test_a_request_for_too_many_tokens_is_refused(path, fields, param):
    error = refused(fields, path, max_tokens=100)
    assert (error.status, error.code, error.param) == (422, "too_many_tokens", param)
    assert "this key may have 100." in error.message


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["n", "max_tokens"])
@pytest.mark.parametrize("value", ["100000", 100000.0, True, [1], {}])
def test_a_bound_that_is_not_a_json_integer_is_refused(path, name, value):
    """VLLM would read "100000" as 100000."""
    error = refused({name: value}, path, max_tokens=100)
    assert (error.status, error.param) == (400, name)


@given(
    path=st.sampled_from(PATHS),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(1, 9) | st.none(),
            "max_tokens": st.integers(1, 99) | st.none(),
            "max_completion_tokens": st.integers(1, 99) | st.none(),
            "prompt": st.lists(st.text(max_size=1), max_size=9) | st.lists(st.integers(0, 9), max_size=9),
        },
    ),
    most=st.integers(1, 99),
)
def test_a_forwarded_request_never_exceeds_the_keys_limit(path, fields, most):
    try:
        sent = json.loads(read(fields, path, max_tokens=most).body)
    except ApiError:
        return
    bounds = [sent.get("max_tokens")] + [sent.get("max_completion_tokens")] * (path == CHAT)
    prompts = [text for text in sent.get("prompt", ()) if isinstance(text, str)]
    tokens = max(bound for bound in bounds if bound is not None)
    assert tokens * (sent.get("n") or 1) * max(len(prompts), 1) <= most


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "tools": [], "logprobs": False}, True),
        ({"temperature": 1, "seed": 0}, True),
        ({"temperature": 1}, False),
        ({"temperature": None, "seed": None}, False),
        ({"temperature": "0", "seed": "1"}, False),
        ({"temperature": 0, "logprobs": True}, False),
        ({"temperature": 0, "logprobs": 1}, False),
        ({"seed": 1, "tools": [{}]}, False),
        ({"seed": 1, "return_token_ids": True}, False),
        ({"seed": 1, "echo": True}, False),
    ],
)
def test_an_answer_is_repeatable_if_another_replica_gives_the_same_text(fields, same):
    assert read(fields).repeatable is same


@pytest.mark.parametrize(("value", "wanted"), [(True, True), (False, False), (None, False), (1, False)])
def test_an_answer_is_streamed_if_requested(value, wanted):
    assert read({"stream": value}).wants_stream is wanted


def test_only_the_prompt_fields_of_the_path_are_counted():
    """A field of the other path, which the model ignores, must not be counted instead of the prompt."""
    messages = [{"role": "user", "content": "long"}]
    both = {"prompt": "short", "messages": messages, "tools": [], "user": "u"}
    assert read(both, CHAT).questions == [{"model": "fused", "messages": messages, "tools": []}]
    assert read(both, COMPLETIONS).questions == [{"model": "fused", "prompt": "short"}]


def test_a_prompt_may_be_as_long_as_the_keys_limit():
    check_prompt(10**9, Limits())
    check_prompt(10, Limits(max_prompt_tokens=10))
    with pytest.raises(ApiError, match="has 11 tokens; this key may send 10") as caught:
        check_prompt(11, Limits(max_prompt_tokens=10))
    assert (caught.value.status, caught.value.code) == (422, "prompt_too_long")


def test_every_prompt_is_counted_and_token_ids_by_their_number():
    asked = [{"model": "fused", "prompt": "a"}, {"model": "fused", "prompt": "b"}]
    assert read({"model": "fused", "prompt": ["a", "b"]}, COMPLETIONS).questions == asked
    assert read({"model": "fused", "prompt": [5, 6, 7]}, COMPLETIONS).questions == [3]
    assert read({"model": "fused", "prompt": [[5], [6, 7]]}, COMPLETIONS).questions == [1, 2]
