"""Connects to Ray, in this one place, and queries the cluster's resources."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.errors import ProfuserError, UserError, one_line
from profuser.recipe.models import ModelConfig
from profuser.recipe.resources import PoolConfig
from profuser.recipe.rewards import RewardConfig
from ray_jobs.runtime.environment import ENVIRONMENT, set_defaults
from ray_jobs.runtime.progress import print_line

MIN_LOGICAL_CPUS = 4
"""Minimum CPUs declared to Ray: on fewer, a stage's workers leave none for the tasks that feed them."""

START_ERRORS = (RuntimeError, TimeoutError, ConnectionError, ValueError)
"""What Ray raises if a start fails for a reason that it knows."""
LOG_LEVELS = {
    "ray.data._internal.execution": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    # Several sources log concurrently.
    "ray.data._internal.logging": logging.WARNING,
    # An actor's error is raised in the driver too: Ray's log of it would only repeat it.
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.serve": logging.ERROR,
    "ray.train": logging.ERROR,
}


@contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS (or the job) names, or starts one on this machine and stops it on exit."""
    if ray.is_initialized():
        yield
        return
    set_defaults()
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    # Workers' output stays in Ray's log files: on the driver's output it would hide the progress lines.
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    if "RAY_ADDRESS" in os.environ:
        # The nodes were started without these variables.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
        _join(options)
    else:
        _start(options | {"address": "local", "num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)})
    try:
        with _ended_by_sigterm():
            yield
    finally:
        ray.shutdown()


def _join(options: dict[str, Any]) -> None:
    """Connects to the cluster of RAY_ADDRESS."""
    try:
        with _muted_stderr():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray: cannot connect to {os.environ['RAY_ADDRESS']}: {one_line(error, 200)}") from None


def _start(options: dict[str, Any]) -> None:
    """Starts Ray on this machine; a start that fails is tried once more, since Ray gives itself 30 s, also on a busy machine.

    Raises:
        ProfuserError: both starts failed.
    """
    before = _children()
    for is_last in (False, True):
        try:
            with _muted_stderr():
                ray.init(**options)
            return
        except Exception as error:
            # Ray raises a plain Exception if its node takes too long.
            if type(error) is not Exception and not isinstance(error, START_ERRORS):
                raise
            for process in _children() - before:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if is_last:
                raise ProfuserError(
                    f"Ray: it did not start on this machine, twice: {one_line(error, 200)}; "
                    "wait until the machine is less busy, then run again"
                ) from None
            print_line(f"Ray: it did not start in time ({one_line(error, 100)}); trying once more")


def _children() -> set[int]:
    """Returns the ids of this process's children (Linux)."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM (`ray job stop`, a preempted pod) unwind the driver like Ctrl-C; Ray's own handler would abort it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Redirects file descriptor 2 to nowhere: Ray's C++ part prints its log level there, bypassing Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def total_gpus() -> float:
    """Returns the number of GPUs of the whole cluster."""
    return ray.cluster_resources().get("GPU", 0.0)


def gpus_for(model: ModelConfig | RewardConfig) -> float:
    """Returns the GPUs of one actor: what its pool requests, else what its parallelism needs if the cluster has GPUs."""
    if model.pool.num_gpus is not None:
        return model.pool.num_gpus
    return float(model.num_devices) if total_gpus() else 0.0


def pool_resources(pool: PoolConfig, num_gpus: float, memory_bytes: int = 0) -> dict[str, Any]:
    """Returns the resources that one actor or task of a pool requests from Ray; without `memory_bytes` no memory."""
    requested: dict[str, Any] = {"num_cpus": 1.0 if pool.num_cpus is None else pool.num_cpus, "num_gpus": num_gpus}
    requested |= {"memory": memory_bytes} if memory_bytes else {}
    return requested | ({"accelerator_type": pool.accelerator_type} if pool.accelerator_type else {})


def pin_to_driver_node() -> NodeAffinitySchedulingStrategy:
    """Returns a strategy that pins a task or actor to the driver's node: any other node may disappear during a stage."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def is_autoscaling_cluster() -> bool:
    """Returns whether this is a cluster, which may add nodes on demand, rather than a single machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_fits(what: str, num_cpus: float, num_gpus: float, count: int = 1) -> None:
    """Raises UserError where a cluster that does not autoscale can never schedule this, instead of waiting forever."""
    if is_autoscaling_cluster():
        return
    have = ray.cluster_resources()
    for name, need in (("CPU", num_cpus * count), ("GPU", num_gpus * count)):
        if need > have.get(name, 0.0):
            raise UserError(
                f"{what} needs {need:g} {name}s ({count} x {need / count:g}), this machine has {have.get(name, 0.0):g}; "
                "lower its pool or workers in the recipe"
            )


def unwrap_error(error: RayTaskError) -> BaseException:
    """Returns the ProfuserError that a task or actor raised; any other error is returned wrapped, with its remote traceback."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if isinstance(inner, ProfuserError):
            return inner
        cause = inner if isinstance(inner, BaseException) and inner is not cause else cause.__cause__
    return error
