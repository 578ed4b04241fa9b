"""Starts a Ray cluster on this machine whose nodes are processes that Ray's autoscaler adds and removes.

`ray.cluster_utils.AutoscalingCluster` does the same, but needs a file missing from Ray's wheel, and stops every Ray on the machine.
"""

import functools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.util import get_node_ip_address

from cluster.harness.node_processes import NodeProcess, free_port

HEAD = "ray.head.default"
AUTOSCALER_ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
NODE_MEMORY_BYTES = 1 << 30
"""Memory of every node, as Ray counts it: the groups of KubeRay's manifests declare memory too."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind, started on demand from zero."""

    name: str
    num_cpus: int
    """CPUs that Ray assumes per node, whatever this machine has."""
    max_nodes: int
    accelerator: str | None = None
    """Name of a simulated accelerator, as pools request it in `accelerator_type`."""

    def resources(self) -> dict[str, int]:
        """Returns the resources of one node."""
        own = {f"accelerator_type:{self.accelerator}": 1} if self.accelerator else {}
        return {"CPU": self.num_cpus, "memory": NODE_MEMORY_BYTES} | own


GROUPS = (
    NodeGroup("cpu", num_cpus=2, max_nodes=2),
    NodeGroup("engines", num_cpus=1, max_nodes=2, accelerator="L40S"),
    NodeGroup("rewards", num_cpus=1, max_nodes=2, accelerator="L4"),
    NodeGroup("train", num_cpus=6, max_nodes=1, accelerator="H100"),
)
"""Groups named as in KubeRay's manifests, but smaller; as there, training fits only on `train`."""

_RayParams = parameter.RayParams


def _with_memory(**params: Any) -> Any:
    """Constructs RayParams whose memory is that of the requested resources."""
    return _RayParams(memory=params["resources"].pop("memory", None), **params)


class LocalNodes(FakeMultiNodeProvider):
    """Ray's process nodes, with memory: Ray starts them without any, but its autoscaler counts on it."""

    @functools.wraps(FakeMultiNodeProvider._create_node_with_resources_and_labels)
    def _create_node_with_resources_and_labels(self, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(parameter, "RayParams", _with_memory):
            super()._create_node_with_resources_and_labels(*args, **kwargs)


@contextmanager
def autoscaling_cluster(groups: Sequence[NodeGroup], idle_seconds: float) -> Iterator[str]:
    """Runs a head without CPUs, and nodes of these groups on demand; nodes idle for `idle_seconds` are removed.

    It requires this process's token, if there is one (RAY_AUTH_MODE, RAY_AUTH_TOKEN, which Ray reads when it is imported).

    Yields:
        The cluster's address.

    Raises:
        ProfuserError: the head did not start.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    options = ["--head", "--num-cpus=0", f"--port={port}", f"--dashboard-port={free_port()}"]
    options += [f"--ray-client-server-port={free_port()}"]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(_config(groups, idle_seconds, port), file)
        file.flush()
        # The nodes are child processes of the head and end with it.
        head = NodeProcess([*options, f"--autoscaling-config={file.name}"], os.environ | AUTOSCALER_ENVIRONMENT)
        try:
            head.wait_started()
            yield address
        finally:
            head.kill()


def _config(groups: Sequence[NodeGroup], idle_seconds: float, gcs: int) -> dict[str, Any]:
    types: dict[str, Any] = {HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    for group in groups:
        limits = {"min_workers": 0, "max_workers": group.max_nodes}
        types[group.name] = {"resources": group.resources(), "node_config": {}, **limits}
    provider = {
        # Not `fakemultinode`, which needs the missing file too.
        "type": "external",
        "module": f"{LocalNodes.__module__}.{LocalNodes.__name__}",
        "gcs_address": f"{get_node_ip_address()}:{gcs}",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    }
    mappings = ("auth", "head_node", "worker_nodes", "file_mounts")
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "local",
        "max_workers": sum(group.max_nodes for group in groups),
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": HEAD,
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{name: {} for name in mappings},
        **{f"{name}_commands": [] for name in commands},
    }
