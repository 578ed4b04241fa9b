"""Sends concurrent requests to an OpenAI API, streamed and not, and records each answer and its time."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
import psutil

from ray_jobs.serving.model import app_name

TIMEOUT = aiohttp.ClientTimeout(total=600)


@dataclass
class Answer:
    """Answer to one request."""

    status: int
    text: str
    seconds: float
    first_seconds: float
    """Seconds until the first text; for an answer that is not streamed, the whole time."""
    error: str | None = None
    """Error of a stream that broke off."""


async def ask(session: aiohttp.ClientSession, url: str, body: dict) -> Answer:
    """Requests one chat completion."""
    start = time.perf_counter()
    async with session.post(f"{url}/chat/completions", json=body) as response:
        if response.status != 200 or not body.get("stream"):
            content = await response.json(content_type=None)
            text = content["choices"][0]["message"]["content"] if response.status == 200 else json.dumps(content)
            seconds = time.perf_counter() - start
            return Answer(response.status, text, seconds, seconds)
        text, first, error = "", None, "no [DONE]"
        async for line in response.content:
            data = line.decode().removeprefix("data: ").strip()
            if data == "[DONE]":
                error = None
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                return Answer(200, text, time.perf_counter() - start, first or 0.0, event["error"]["message"])
            new = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            first = first or (time.perf_counter() - start if new else None)
            text += new
        return Answer(200, text, time.perf_counter() - start, first or 0.0, error)


async def load(
    url: str,
    bodies: Sequence[dict],
    concurrency: int,
    on_done: Callable[[int], None] = lambda _: None,
    key: str | None = None,
) -> list[Answer]:
    """Returns the answers in the order of the requests, `concurrency` at a time; calls `on_done` with the number done."""
    places = asyncio.Semaphore(concurrency)
    done = 0
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=TIMEOUT, headers=headers, connector=connector) as session:

        async def one(body: dict) -> Answer:
            nonlocal done
            async with places:
                answer = await ask(session, url, body)
            done += 1
            on_done(done)
            return answer

        return await asyncio.gather(*(one(body) for body in bodies))


def replica_pids(model: str) -> list[int]:
    """Returns the processes of a model's replicas on this machine."""
    title = f"ray::ServeReplica:{app_name(model)}:Model"
    return [each.pid for each in psutil.process_iter(["cmdline"]) if title in " ".join(each.info["cmdline"] or [])]


def chat(model: str, question: str, max_tokens: int, **more) -> dict:
    """Returns the body of a greedy chat completion."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
