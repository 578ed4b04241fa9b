"""Queries what the cluster's nodes have for engines that run on CPUs: free CPUs, memory, products in bfloat16."""

import math
import os
from functools import cache
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.utils import get_num_cpus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.engines.processor import BFLOAT16_FLAGS, bfloat16_flag
from ray_jobs.runtime.cluster import is_autoscaling_cluster


def nodes_with_cpus() -> list[dict[str, Any]]:
    """Returns the live nodes that have CPUs, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def share_of_cpus(free: list[float], num_engines: int) -> float:
    """Returns the CPUs of each of several engines that run concurrently: whole ones, at least one, as many as all of them can get.

    Args:
        free: free CPUs of each node.
        num_engines: engines, spread over the nodes with most free CPUs.
    """
    if not free:
        return 1.0
    per_node = math.ceil(num_engines / len(free))
    num_used = math.ceil(num_engines / per_node)
    return float(max(1, int(sorted(free, reverse=True)[num_used - 1] // per_node)))


def free_cpus() -> list[float]:
    """Returns the CPUs of each node that were free when they were first asked for in this connection to Ray.

    On a single machine these are its processor's: Ray may have been told more. OMP_NUM_THREADS limits them: an engine that inherits
    it uses no more.
    """
    free = _free_cpus(ray.get_runtime_context().get_job_id())
    if is_autoscaling_cluster():
        return free
    threads = os.environ.get("OMP_NUM_THREADS", "")
    limit = min(
        float(get_num_cpus(override_docker_cpu_warning=True)), float(threads) if threads.isdigit() else math.inf
    )
    return [min(cpus, limit) for cpus in free]


@cache
def _free_cpus(job: str) -> list[float]:
    available = available_resources_per_node()
    return [available.get(node["NodeID"], {}).get("CPU", 0.0) for node in nodes_with_cpus()]


def most_memory() -> float:
    """Returns the memory in bytes of the node that has most of it for actors; 0 if no node has CPUs."""
    return max((node["Resources"].get("memory", 0.0) for node in nodes_with_cpus()), default=0.0)


def common_bfloat16_flag() -> str | None:
    """Returns the flag for bfloat16 products of the nodes' processors, the lesser one if they differ; None if one has none."""
    nodes = nodes_with_cpus()
    if not is_autoscaling_cluster() or not nodes:
        return bfloat16_flag()
    ask = ray.remote(num_cpus=0)(bfloat16_flag)
    here = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes]
    flags: Any = ray.get([ask.options(scheduling_strategy=strategy).remote() for strategy in here])
    return None if None in flags else max(flags, key=BFLOAT16_FLAGS.index)
