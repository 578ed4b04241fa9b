"""A gateway over scripted models, for tests in a browser."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import uvicorn

from profuser.serving.asgi import Head
from profuser.serving.errors import ApiError, interrupted
from profuser.serving.gateway import Gateway
from profuser.serving.keys import KeyRing
from profuser.serving.options import ServeConfig, ServedModel
from profuser.serving.requests import ApiRequest

MODELS = ("fused", "target", "source-a", "source-b")


def reply(model: str, prompt: str) -> str:
    """Returns a model's answer."""
    return f"{model} says:\n« {prompt} » so naïve 🙂"


def thoughts(model: str) -> str:
    """Returns a model's reasoning."""
    return f"<b>{model}</b> considers the prompt.\nIt is short."


class Models:
    """Backend that responds like vLLM. The prompt requests faults as `MODEL FAULT`: fails, cut, busy, endless; `MODEL thinks`
    requests reasoning before the answer, and `MODEL ponders` reasoning without one."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.left: list[str] = []
        """Models whose client disconnected."""

    def forget(self) -> None:
        self.asked.clear()
        self.left.clear()

    def last(self, model: str) -> dict:
        return [fields for fields in self.asked if fields["model"] == model][-1]

    async def whole(self, request: ApiRequest, request_id: str) -> tuple[Head, bytes]:
        raise NotImplementedError

    async def count_tokens(self, request: ApiRequest) -> int:
        return 1

    async def stream(self, request: ApiRequest, request_id: str) -> AsyncGenerator[Head | bytes, None]:
        model, prompt = request.model, request.fields["messages"][-1]["content"]
        self.asked.append(dict(request.fields))
        if f"{model} busy" in prompt and len([each for each in self.asked if each["model"] == model]) == 1:
            raise ApiError(429, f"The model {model!r} has too many requests.", "overloaded", retry_after=7)
        yield Head(200, "text/event-stream; charset=utf-8")
        try:
            async for event in self._events(model, prompt):
                for piece in _split(event.encode()):
                    yield piece
                    await asyncio.sleep(0.006)
        except (GeneratorExit, asyncio.CancelledError):
            self.left.append(model)
            raise

    async def _events(self, model: str, prompt: str) -> AsyncGenerator[str, None]:
        yield _chunk(model, {"role": "assistant", "content": ""})
        words = reply(model, prompt).split(" ")
        if f"{model} thinks" in prompt or f"{model} ponders" in prompt:
            for word in ["\n", *thoughts(model).split(" ")]:
                yield _chunk(model, {"reasoning": f"{word} "})
            yield _chunk(model, {"content": "\n\n"})
        if f"{model} ponders" in prompt:
            words = []
        for number, word in enumerate(words):
            yield _chunk(model, {"content": word if number == 0 else f" {word}"})
            if number == 2 and f"{model} fails" in prompt:
                raise interrupted()
            if number == 2 and f"{model} cut" in prompt:
                return
        while f"{model} endless" in prompt:
            yield _chunk(model, {"content": " more"})
        yield _chunk(model, {}, "stop")
        usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
        yield f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def _chunk(model: str, delta: dict, finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    fields = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": model, "choices": [choice]}
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


def _split(event: bytes) -> tuple[bytes, bytes]:
    """Splits an event as a network may: inside a line, and inside a multi-byte character if there is one."""
    place = next((place for place, byte in enumerate(event) if byte > 127), len(event) // 2) + 1
    return event[:place], event[place:]


@contextmanager
def serving(keys: KeyRing | None = None, models: tuple[str, ...] = MODELS) -> Iterator[tuple[str, Models]]:
    """Runs a gateway in a thread; yields its address and models."""
    backend = Models()
    config = ServeConfig(models=tuple(ServedModel(name=name, model=name) for name in models), insecure=keys is None)
    settings = uvicorn.Config(
        Gateway(config.gateway, backend, keys).app(), log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(settings)
    place = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([place],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}", backend
    finally:
        server.should_exit = True
        thread.join(10)
        place.close()
