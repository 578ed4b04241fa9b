"""`serve deploy` with the file that `profuser serve --write-config` writes, on a manually started cluster."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

from cluster.harness.node_processes import free_port, free_ports
from profuser.models.lab_paths import assets_path
from tests.load import replica_pids

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

BIN = Path(sys.executable).parent
KEY, NAME = "sk-of-the-deployment-0123456789", "lab"


@pytest.fixture
def cluster():
    """Yields the environment of a one-node Ray cluster, with its dashboard's address and an API key of the server."""
    gcs, board, client, agent = free_ports(4)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "PROFUSER_API_KEYS": KEY}
    variables |= {"RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{board}", "VLLM_CPU_KVCACHE_SPACE": "1"}
    options = [f"--port={gcs}", f"--dashboard-port={board}", f"--ray-client-server-port={client}"]
    options += [f"--dashboard-agent-listen-port={agent}", "--num-cpus=4", "--block", "--disable-usage-stats"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    start = [str(BIN / "ray"), "start", "--head", *options]
    process = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    _wait_for(
        f"{variables['RAY_DASHBOARD_ADDRESS']}/api/version",
        {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    yield environment
    process.terminate()
    process.wait(60)


def _wait_for(url, headers, seconds=240):
    end = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(url, headers=headers, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, url
        time.sleep(0.5)


def test_a_written_file_is_deployed_changed_in_place_and_shut_down(cluster, tmp_path):
    def run(program, *arguments):
        command = [str(BIN / program), *map(str, arguments)]
        done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    port, file, folder = free_port(), tmp_path / "serve.yaml", assets_path() / "sources" / "llama"
    run("profuser", "serve", "--model", f"{NAME}={folder}", "--port", port, "--write-config", file)
    config = yaml.safe_load(file.read_text())
    config["applications"][0]["args"]["tensor_parallel_size"] = 2
    file.write_text(yaml.safe_dump(config))
    run("serve", "deploy", file)
    _wait_for(f"http://127.0.0.1:{port}/v1/models", {"Authorization": f"Bearer {KEY}"})
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
    request = {"model": NAME, "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 8}
    assert client.chat.completions.create(**request).usage.completion_tokens > 0
    assert len(_engine_workers()) == 2, _engine_workers()
    status = yaml.safe_load(run("serve", "status"))
    assert {application["status"] for application in status["applications"].values()} == {"RUNNING"}

    config["applications"][-1]["args"]["limits"] = {"max_tokens": 4}
    file.write_text(yaml.safe_dump(config))
    run("serve", "deploy", file)
    end = time.monotonic() + 120
    while _is_answered(client, request):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert client.chat.completions.create(**request | {"max_tokens": 4})
    run("serve", "shutdown", "--yes")


def _engine_workers():
    """Returns the commands of the processes below the replica's engine process. (vLLM cannot always set their titles.)"""
    (replica,) = replica_pids(NAME)
    below = [each for engine in psutil.Process(replica).children() for each in engine.children()]
    commands = [" ".join(process.cmdline()) for process in below]
    return [command for command in commands if "resource_tracker" not in command]


def _is_answered(client, request):
    try:
        return client.chat.completions.create(**request)
    except openai.UnprocessableEntityError:
        return None
