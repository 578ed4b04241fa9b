"""Gateway and replicas against vLLM's own OpenAI server: requests/s, time to the first token, and a killed replica.

Measured three times: as `profuser serve` starts them, with the gateway's own listener; behind HAProxy, as on Kubernetes; behind Ray
Serve's own proxy, as with `serve deploy` without HAProxy.
"""

import asyncio
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from ray import serve
from ray.serve.config import HTTPOptions

from profuser.serving.options import ServeConfig
from ray_jobs.runtime.cluster import connected
from ray_jobs.serving.app import deploy
from ray_jobs.serving.gateway import build_gateway
from ray_jobs.serving.model import APP, app_name, build_model, vllm_flags
from tests import tiny
from tests.benchmarks.measure import Row
from tests.load import Answer, chat, load, replica_pids

NAME, NUM_TOKENS, NUM_LETTERS = "bench", 64, 26
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 4096,
}
"""Shape of a model with random weights that takes some milliseconds per token, like a 7B on a GPU."""
ROUNDS = 9
NUM_KILLED = 2000
NO_PROXY = "no proxy"
PROXIES = {
    NO_PROXY: {},
    # Without the second, it exceeds the limit of open files.
    "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_MAXCONN": "4000"},
    "Ray's proxy": {},
}
BARE, OURS = 8311, 8312
"""Ports."""


def requests(number: int, stream: bool = False, tokens: int = NUM_TOKENS, model: str = NAME) -> list[dict]:
    """Returns different questions; every answer has exactly `tokens` tokens."""
    settings = {"stream": stream, "ignore_eos": True}
    return [chat(model, f"Sort the letters {n % NUM_LETTERS}.", tokens, **settings) for n in range(number)]


def rate(url: str, concurrency: int) -> float:
    """Returns requests per second."""
    bodies = requests(max(12, 6 * concurrency))
    start = time.perf_counter()
    answers = asyncio.run(load(url, bodies, concurrency))
    seconds = time.perf_counter() - start
    assert all(answer.status == 200 for answer in answers)
    return len(bodies) / seconds


def first_token(url: str) -> float:
    """Returns the milliseconds to the first token, the median over sequential requests."""
    answers = asyncio.run(load(url, requests(40, stream=True, tokens=8), 1))
    return 1000 * statistics.median(answer.first_seconds for answer in answers)


def bare_server(path: str, options: ServeConfig, port: int) -> subprocess.Popen:
    """Starts vLLM's own server, with the same engine options."""
    flags = vllm_flags(options.models[0], path, "float32", on_gpu=False)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port), "--host", "127.0.0.1"]
    # Ray's setting for a replica of one CPU.
    variables = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command += [*flags, "--disable-uvicorn-access-log"]
    return subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(url: str) -> None:
    """Waits until the server answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


def in_turns(ours: str, bare: str, measure: Callable[[str], float]) -> list[tuple[float, float]]:
    """Returns the measurements of both, round by round."""
    pairs = []
    for number in range(ROUNDS):
        order = (ours, bare) if number % 2 else (bare, ours)
        found = {url: measure(url) for url in order}
        pairs.append((found[ours], found[bare]))
    return pairs


def side_by_side(bare: str, ours: str, proxy: str) -> list[Row]:
    """Measures both running servers in turns, each first equally often."""
    out = []
    for concurrency in (1, 8, 32):
        pairs = in_turns(ours, bare, partial(rate, concurrency=concurrency))
        value, baseline = sorted(pairs, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
        all_ratios = ", ".join(f"{a / b:.2f}" for a, b in sorted(pairs, key=lambda pair: pair[0] / pair[1]))
        title = f"serve, {proxy}: requests at concurrency {concurrency}, against vLLM's server ({all_ratios})"
        out.append(Row(title, value, "requests/s", baseline, ">= 0.85 x"))
    pairs = in_turns(ours, bare, first_token)
    value, baseline = sorted(pairs, key=lambda pair: pair[0] - pair[1])[ROUNDS // 2]
    added = f"{value - baseline:.1f} ms more"
    out.append(Row(f"serve, {proxy}: time to the first token ({added})", value, "ms", baseline, "<= 15 ms more"))
    return out


def kill_a_replica() -> None:
    """Sends SIGKILL, as if its node was lost."""
    os.kill(replica_pids(NAME)[0], signal.SIGKILL)


def killed(url: str, expected: list[str], proxy: str) -> Row:
    """Measures requests, every second one streamed, while one of two replicas is killed."""
    bodies = [body | {"stream": bool(n % 2)} for n, body in enumerate(requests(NUM_KILLED, tokens=16))]

    def on_done(number: int) -> None:
        if number == NUM_KILLED // 2:
            kill_a_replica()

    answers = asyncio.run(load(url, bodies, 32, on_done))
    right = sum(is_right(answer, expected[n % NUM_LETTERS]) for n, answer in enumerate(answers))
    return Row(f"serve, {proxy}: right answers of 2,000 while a replica is killed", right, "", NUM_KILLED, "all")


def is_right(answer: Answer, expected: str) -> bool:
    """Returns whether an answer is complete and equal to the bare engine's."""
    return answer.status == 200 and answer.error is None and answer.text == expected


def behind_a_proxy(config: ServeConfig) -> None:
    """Starts or updates serving as from a Serve config file."""
    (model,) = config.models
    applications = [(build_model(model), app_name(model.name), None), (build_gateway(config.gateway), APP, "/")]
    serve.run_many([serve.RunTarget(*application) for application in applications])


def behind(proxy: str) -> list[Row]:
    """Returns all rows behind one proxy, or none, from a process started with its variables."""
    started = partial(deploy, host="127.0.0.1", port=OURS) if proxy == NO_PROXY else behind_a_proxy
    bare_url, url = (f"http://127.0.0.1:{port}/v1" for port in (BARE, OURS))
    with tempfile.TemporaryDirectory() as folder, connected():
        options, path = made(folder, num_replicas=1)
        bare = bare_server(path, options, BARE)
        try:
            serve.start("Disabled" if proxy == NO_PROXY else None, HTTPOptions(host="127.0.0.1", port=OURS))
            started(options)
            wait_for(f"http://127.0.0.1:{OURS}/health")
            wait_for(f"http://127.0.0.1:{BARE}/health")
            rows = side_by_side(bare_url, url, proxy)
            alone = asyncio.run(load(bare_url, requests(NUM_LETTERS, tokens=16), 1))
        finally:
            bare.terminate()
            bare.wait()
        started(made(folder, num_replicas=2)[0])
        rows.append(killed(url, [answer.text for answer in alone], proxy))
        return rows


def made(folder: str, num_replicas: int) -> tuple[ServeConfig, str]:
    """Returns the serve config and the model's folder."""
    path = tiny.llama(Path(folder) / "model", seed=0, **SHAPE)
    model = {"name": NAME, "model": path, "num_cpus": 1, "max_model_len": 256, "num_replicas": num_replicas}
    return ServeConfig.parse({"models": [model], "insecure": True}, "the benchmark"), path


def run() -> list[Row]:
    rows = []
    for proxy, variables in PROXIES.items():
        os.environ |= variables
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            rows += fresh.submit(behind, proxy).result()
        for name in variables:
            del os.environ[name]
    return rows
