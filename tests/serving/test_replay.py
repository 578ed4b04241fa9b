"""Interrupted streams continue on another replica: the client gets the whole answer exactly once."""

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.serving.errors import ApiError
from profuser.serving.replay import Replay
from tests.serving.fake_backend import DONE, logged


@dataclass(frozen=True)
class Answer:
    """A model's chat or text completion: the text of every choice, the reasoning before it, and its finish reason."""

    texts: tuple[str, ...]
    ends: tuple[str, ...]
    is_chat: bool
    has_usage: bool
    thoughts: tuple[str, ...]

    def whole(self) -> dict[str, Any]:
        """Returns what a client has received in the end."""
        roles = [1] * len(self.texts) if self.is_chat else [0] * len(self.texts)
        ends = [[end] for end in self.ends]
        texts = {"texts": list(self.texts), "thoughts": list(self.thoughts)}
        return texts | {"roles": roles, "ends": ends, "usage": int(self.has_usage), "done": 1}


def event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def delta(index: int, text: str | None, is_chat: bool = True, role: bool = False, end: str | None = None) -> bytes:
    """Returns an event as vLLM sends it."""
    content = {} if text is None else {"content" if is_chat else "text": text}
    content = {"delta": ({"role": "assistant"} if role else {}) | content} if is_chat else {"text": "", **content}
    return event({"id": "1", "choices": [{"index": index, **content, "finish_reason": end}]})


def thought(index: int, text: str) -> bytes:
    """Returns an event with a part of the reasoning, as vLLM sends it."""
    return event({"id": "1", "choices": [{"index": index, "delta": {"reasoning": text}, "finish_reason": None}]})


@st.composite
def cut(draw, text: str) -> list[str]:
    """Draws a text split anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def answers(draw) -> Answer:
    texts = draw(st.lists(st.text(max_size=12), min_size=1, max_size=3))
    ends, is_chat = [draw(st.sampled_from(["stop", "length"])) for _ in texts], draw(st.booleans())
    thoughts = [draw(st.text(max_size=9)) if is_chat else "" for _ in texts]
    return Answer(tuple(texts), tuple(ends), is_chat, draw(st.booleans()), tuple(thoughts))


@st.composite
def streams(draw, answer: Answer) -> bytes:
    """Draws the answer as events: split anywhere, choices interleaved, the role and the end separate or with a text."""
    choices = []
    for index, (text, end) in enumerate(zip(answer.texts, answer.ends, strict=True)):
        thoughts = [thought(index, part) for part in draw(cut(answer.thoughts[index])) if part]
        parts = draw(cut(text))
        separate = (bool(thoughts) or draw(st.booleans()), draw(st.booleans()))  # the role comes first
        parts = [""] * separate[0] + parts + [None] * separate[1]
        chat = answer.is_chat
        last = len(parts) - 1
        events = [delta(index, p, chat, chat and at == 0, end if at == last else None) for at, p in enumerate(parts)]
        choices.append([*events[: bool(separate[0])], *thoughts, *events[bool(separate[0]) :]])
    order = draw(st.permutations([index for index, events in enumerate(choices) for _ in events]))
    events = [choices[index].pop(0) for index in order]
    usage = event({"id": "1", "choices": [], "usage": {"total_tokens": 1}})
    return b"".join([*events, *[usage] * answer.has_usage, DONE])


@st.composite
def pieces(draw, stream: bytes) -> list[bytes]:
    """Draws a stream split into pieces as by a network."""
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def client(got: bytes) -> dict[str, Any]:
    """Parses the events that a client has received."""
    texts, roles, ends, thoughts = defaultdict(str), defaultdict(int), defaultdict(list), defaultdict(str)
    usage = done = 0
    *events, rest = got.split(b"\n\n")
    assert rest == b""
    for data in [each.removeprefix(b"data: ") for each in events]:
        assert not done
        done += data == b"[DONE]"
        content = {"choices": [{}]} if data == b"[DONE]" else json.loads(data)
        usage += not content["choices"]
        for choice in filter(None, content["choices"]):
            index, delta = choice["index"], choice.get("delta", {})
            texts[index] += delta.get("content") or choice.get("text") or ""
            thoughts[index] += delta.get("reasoning") or ""
            assert not (delta.get("reasoning") and texts[index]), "reasoning after the answer"
            roles[index] += "role" in delta
            ends[index] += [choice["finish_reason"]] if choice["finish_reason"] else []
    inorder = [[by[index] for index in sorted(texts)] for by in (texts, thoughts, roles, ends)]
    return dict(zip(("texts", "thoughts", "roles", "ends"), inorder, strict=True)) | {"usage": usage, "done": done}


@given(st.data())
def test_an_answer_interrupted_anywhere_reaches_the_client_once(data):
    answer = data.draw(answers())
    replay, got = Replay(repeatable=True), b""
    for _ in range(data.draw(st.integers(0, 2), "attempts that break off")):
        replay.restart()
        stream = data.draw(streams(answer))
        for piece in data.draw(pieces(stream[: data.draw(st.integers(0, len(stream)), "broken off at")])):
            got += replay.forward(piece)
    replay.restart()
    for piece in data.draw(pieces(data.draw(streams(answer)))):
        got += replay.forward(piece)
    assert client(got) == answer.whole()


@given(st.data())
def test_without_an_interruption_every_byte_is_forwarded(data):
    stream = data.draw(streams(data.draw(answers())))
    replay = Replay(data.draw(st.booleans()))
    replay.restart()
    assert b"".join(replay.forward(piece) for piece in data.draw(pieces(stream))) == stream


def attempts(first: list[bytes], second: list[bytes], repeatable: bool = True) -> bytes:
    replay = Replay(repeatable)
    replay.restart()
    got = b"".join(map(replay.forward, first))
    replay.restart()
    return got + b"".join(map(replay.forward, second))


@pytest.mark.parametrize(
    "second",
    [
        [delta(0, "Berlim")],
        [delta(0, "B"), delta(0, "a")],
        [delta(0, "Ber"), delta(0, None, end="stop")],
        [delta(0, "Ber", end="length")],
        [delta(0, "berlin", end="stop")],
        [thought(0, "Hm"), delta(0, "Berlin")],
    ],
    ids=["another end", "another letter", "ends too early", "is shorter", "another beginning", "reasons first"],
)
def test_an_answer_that_differs_on_the_second_attempt_is_given_up(second):
    with pytest.raises(ApiError) as caught:
        attempts([delta(0, "", role=True), delta(0, "Berlin")], second)
    assert (caught.value.status, caught.value.code) == (503, "replica_lost")


@pytest.mark.parametrize("second", [[delta(0, "Berlin is")], [delta(0, "Berlin"), delta(0, "!", end="stop")]])
def test_an_answer_that_has_ended_does_not_continue(second):
    with pytest.raises(ApiError, match="replica was lost"):
        attempts([delta(0, "Berlin", end="stop")], second)


@given(st.data())
def test_two_different_texts_never_reach_a_client_as_one_answer(data):
    """Either the difference is noticed, or the part already sent is also a prefix of the other text."""
    one, other = (
        Answer((data.draw(st.text("ab", max_size=6)),), ("stop",), True, False, (data.draw(st.text("ab", max_size=3)),))
        for _ in range(2)
    )
    first = data.draw(streams(one))
    part = first[: data.draw(st.integers(0, len(first)))]
    second = data.draw(streams(other))
    with suppress(ApiError):
        got = client(attempts([part], [second]))
        assert (got["texts"], got["thoughts"]) == (list(other.texts), list(other.thoughts))


def test_an_unrepeatable_answer_is_retried_only_before_it_has_begun():
    replay = Replay(repeatable=False)
    replay.restart()
    assert replay.forward(delta(0, "Berlin")[:-1]) == b""
    assert not replay.has_begun
    replay.restart()
    assert replay.forward(delta(0, "Paris")) == delta(0, "Paris")
    assert replay.has_begun
    with pytest.raises(ApiError) as caught:
        replay.restart()
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})


def test_comments_pass_and_each_choice_of_an_event_is_cut():
    both = event({"choices": [{"index": 0, "text": "ab"}, {"index": 1, "text": "x"}]})
    got = attempts([b": ping\n\n", both], [b": ping\n\n", both.replace(b"ab", b"abc"), both[:-9]])
    rest = {"choices": [{"index": 0, "text": "c"}]}
    assert got.split(b"\n\n")[:3] == [b": ping", both.strip(), b": ping"]
    assert json.loads(got.split(b"\n\n")[3].removeprefix(b"data: ")) == rest


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("code", [500, 503, None])
def test_the_details_of_a_models_failure_are_hidden_from_the_client(repeatable, code):
    failure = event({"error": {"message": "CUDA error at /srv/x.py", "type": "E", "param": None, "code": code}})
    replay = Replay(repeatable)
    replay.restart()
    with logged() as lines, pytest.raises(ApiError) as caught:
        replay.forward(delta(0, "a") + failure + DONE)
    assert caught.value.status == 500
    assert "CUDA" not in caught.value.event.decode()
    assert "CUDA error at /srv/x.py" in "".join(lines)


def test_a_client_error_is_passed_on():
    fault = event({"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}})
    assert Replay(repeatable=False).forward(fault + DONE) == fault + DONE
