"""A stage on a cluster that has no node for it yet: Ray's own autoscaler brings nodes (here processes) and takes them away."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from profuser.artifacts import Artifact
from profuser.recipe.pools import PoolConfig
from profuser.storage import Folder
from ray_jobs.cluster import connected
from ray_jobs.shards import run_shards
from tests.ray.test_run import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SCHEMA = pa.schema([pa.field("row_id", pa.string(), nullable=False)])
RAY = str(Path(sys.executable).parent / "ray")
NUM_SHARDS, MAX_NODES = 40, 3

# As `ray.cluster_utils.AutoscalingCluster` has it, which reads a file that is not in the wheel and stops every Ray of the machine.
# The provider is named as an external one because `fake_multinode` wants such a file too.
CONFIG = {
    "cluster_name": "autoscaling",
    "max_workers": MAX_NODES,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "external",
        "module": "tests.ray.local_nodes.LocalNodes",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 2, "memory": 1 << 30},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MAX_NODES,
        },
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "head_node": {},
    "worker_nodes": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


class SlowWorker:
    """Takes its time over a shard; the test is about the pool, not about what it does."""

    def __init__(self, output):
        self.output = output

    def process(self, shard):
        time.sleep(2)
        self.output.write_shard(shard, pa.table({"row_id": [str(shard)]}, schema=SCHEMA), {"rows": 1})
        return {"rows": 1}


@pytest.fixture
def autoscaling(monkeypatch):
    """A head without CPUs, and up to three nodes of two CPUs that are there only when they are wanted."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    gcs, board, client, agent = free_ports(4)
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        provider = CONFIG["provider"] | {"gcs_address": f"{ray.util.get_node_ip_address()}:{gcs}"}
        json.dump(CONFIG | {"provider": provider}, file)
        file.flush()
        ports = [f"--port={gcs}", f"--dashboard-port={board}", f"--ray-client-server-port={client}"]
        ports += [f"--dashboard-agent-listen-port={agent}"]
        start = [RAY, "start", "--head", "--num-cpus=0", "--block", *ports]
        process = subprocess.Popen(
            [*start, f"--autoscaling-config={file.name}", "--disable-usage-stats"],
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"127.0.0.1:{gcs}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        try:
            wait_for(address)
            yield
        finally:
            _stop(process, gcs)


def _stop(process, gcs):
    """The head, and the nodes that its autoscaler has started: they know it by its port."""
    started = [p for p in psutil.process_iter(["cmdline"]) if f":{gcs}" in " ".join(p.info["cmdline"] or [])]
    process.terminate()
    process.wait(60)
    for each in started:
        if each.is_running():
            each.kill()


def wait_for(address):
    deadline = time.monotonic() + 60
    while subprocess.run([RAY, "health-check", "--address", address], capture_output=True, env=os.environ).returncode:
        assert time.monotonic() < deadline, "the head did not start"
        time.sleep(0.5)


def alive():
    return sum(node["Alive"] for node in ray.nodes()) - 1  # without the head


def test_nodes_come_with_the_work_and_go_with_it(autoscaling, tmp_path):
    source, output = (Artifact(Folder.at(tmp_path / name), name, SCHEMA) for name in ("source", "output"))
    for shard in range(NUM_SHARDS):
        source.write_shard(shard, pa.table({"row_id": [str(shard)]}, schema=SCHEMA), {"rows": 1})
    source.finish([{"rows": NUM_SHARDS}], 0.0)
    pool = PoolConfig(min_actors=1, max_actors=MAX_NODES, num_cpus=2)
    with connected():
        counts, ended = [alive()], threading.Event()

        def watch():
            while not ended.wait(0.5):
                counts.append(alive())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        run_shards(output, source, SlowWorker, {"output": output}, pool, 0.0)
        deadline = time.monotonic() + 240
        while alive() and time.monotonic() < deadline:
            time.sleep(1)
        ended.set()
        watcher.join()
        counts.append(alive())
    assert output.shards() == list(range(NUM_SHARDS))
    assert counts[0] == 0
    assert max(counts) == MAX_NODES
    assert counts[-1] == 0
