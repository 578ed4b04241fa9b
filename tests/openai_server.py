"""A scripted OpenAI-compatible server on a real socket, and a proxy in front of a real one."""

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np

from profuser.alignment.token_bytes import TokenBytes

MODEL = "acme/big"
CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


@dataclass
class Failure:
    """A response that is no answer; without a status the connection is dropped."""

    status: int | None
    message: str = "scripted failure"
    headers: dict[str, str] = field(default_factory=dict)
    parameter: str | None = None
    code: str | None = None


@dataclass(kw_only=True)
class _Responder(ABC):
    """Responds to requests. `fail` decides on each, given its path and body, whether it fails."""

    fail: Callable[[str, dict[str, Any]], Failure | None] = lambda path, body: None
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any] | Failure:
        self.asked.append((path, body, headers))
        if failure := self.fail(path, body):
            return failure
        return self.content(path, body)

    @abstractmethod
    def content(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Failure:
        """Returns the JSON of an answer to a request that does not fail."""


@dataclass(kw_only=True)
class Scripted(_Responder):
    """Answers of a server."""

    tokenizer: Any = None
    """Its tokenizer; without one it gives no log-probabilities."""
    answer: Callable[[dict[str, Any]], str | dict[str, Any]] = lambda body: "ok"
    """Text of an answer, or a whole choice."""
    knows_ids: bool = True
    """Whether it is like vLLM: names tokens by ids, and teacher-forces."""
    max_logprobs: int = 20
    names_end: bool = True
    """Whether it lists the token that ends the turn."""
    exact_bytes: bool = False
    """Whether the bytes of a token are its own, like OpenAI's; by default those of its decoded text, like vLLM's."""
    cut_after: int | None = None
    """Tokens after which answers are cut."""
    listed: dict[str, Any] | None = field(default_factory=lambda: {"root": "/models/big", "max_model_len": 256})
    usage: tuple[int, int] = (7, 3)

    def content(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Failure:
        if path == MODELS:
            return Failure(404) if self.listed is None else {"data": [{"id": MODEL, **self.listed}]}
        if path == CHAT:
            return self._with_usage(self._chat(body))
        if path == COMPLETIONS and self.knows_ids:
            return self._with_usage(self._completion(body))
        return Failure(404, "no such path")

    def _with_usage(self, choice: dict[str, Any] | Failure) -> dict[str, Any] | Failure:
        usage = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
        return choice if isinstance(choice, Failure) else {"choices": [choice], "usage": usage}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any] | Failure:
        if body.get("top_logprobs", 0) > self.max_logprobs:
            return Failure(400, f"top_logprobs must be at most {self.max_logprobs}", parameter="top_logprobs")
        if body.get("return_tokens_as_token_ids") and not self.knows_ids:
            return Failure(400, "Unrecognized request argument supplied: return_tokens_as_token_ids")
        found = self.answer(body)
        if isinstance(found, dict):
            return found
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": found}, "finish_reason": "stop"}
        if body.get("logprobs") and self.tokenizer:
            ids = self.tokenizer.encode(found, add_special_tokens=False)[: self.cut_after]
            if self.cut_after is None:
                ids += [self.tokenizer.eos_token_id] if self.names_end else []
            else:
                text = self._table.spell(np.array(ids)).decode(errors="ignore").removeprefix(" ")
                choice |= {"message": {"role": "assistant", "content": text}, "finish_reason": "length"}
            content = [self._entry(i, place, body) for place, i in enumerate(ids)]
            choice["logprobs"] = {"content": content}
        return choice

    def _entry(self, index: int, place: int, body: dict[str, Any]) -> dict[str, Any]:
        candidates = distribution(index, place, len(self.tokenizer), body["top_logprobs"])
        tops = [self._token(one, value, body) for one, value in candidates.items()]
        return self._token(index, OWN, body) | {"top_logprobs": tops}

    def _token(self, index: int, logprob: float, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("return_tokens_as_token_ids"):
            name = f"token_id:{index}"
            return {"token": name, "logprob": logprob, "bytes": list(name.encode())}
        name = self.tokenizer.decode([index])
        spelt = self._table[index] if self.exact_bytes else None
        return {"token": name, "logprob": logprob, "bytes": list(spelt or name.encode())}

    @cached_property
    def _table(self) -> TokenBytes:
        return TokenBytes.from_tokenizer(self.tokenizer, len(self.tokenizer))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, size = body["prompt"], len(self.tokenizer)
        if "prompt_logprobs" not in body:
            tops = {f"token_id:{i}": v for i, v in distribution(ids[-1], len(ids), size, body["logprobs"]).items()}
            first = next(iter(tops))
            return {"logprobs": {"tokens": [first], "token_logprobs": [tops[first]], "top_logprobs": [tops]}}
        found = [
            {str(i): OWN} | {str(i): v for i, v in distribution(i, place, size, body["prompt_logprobs"]).items()}
            for place, i in enumerate(ids)
        ]
        return {"prompt_logprobs": [None, *({i: {"logprob": v} for i, v in one.items()} for one in found[1:])]}


OWN = -0.75


def distribution(index: int, place: int, vocab_size: int, top_k: int) -> dict[int, float]:
    """Returns candidates at a token: the token itself first, then others that depend on it."""
    others = [(index + 7 * rank + 1) % vocab_size for rank in range(1, top_k)]
    return dict(zip([index, *others], [OWN, *(-1.5 - 0.25 * np.arange(top_k - 1))], strict=False)) if top_k else {}


@contextmanager
def serving(script: Any) -> Iterator[str]:
    """Serves scripted answers; yields the base URL."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._handle({})

        def do_POST(self):
            self._handle(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _handle(self, body):
            with lock:
                script.in_flight += 1
                script.most_in_flight = max(script.most_in_flight, script.in_flight)
            found = script.respond(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            with lock:
                script.in_flight -= 1
            if isinstance(found, Failure) and found.status is None:
                self.close_connection = True
                return
            headers = found.headers if isinstance(found, Failure) else {}
            status = found.status if isinstance(found, Failure) else 200
            if isinstance(found, Failure):
                found = {"error": {"message": found.message, "param": found.parameter, "code": found.code}}
            content = json.dumps(found).encode()
            self.send_response(status)
            for name, value in (
                *headers.items(),
                ("content-type", "application/json"),
                ("content-length", len(content)),
            ):
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def handle(self):
            with suppress(ConnectionError, ValueError):  # A client that was killed.
                super().handle()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(kw_only=True)
class Proxy(_Responder):
    """Passes requests to a real server."""

    base_url: str

    def content(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Failure:
        url = self.base_url.removesuffix("/v1") + path
        found = httpx.post(url, json=body, timeout=120) if body else httpx.get(url, timeout=120)
        return found.json() if found.is_success else Failure(found.status_code, found.text)
