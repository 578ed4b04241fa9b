"""The one place that connects to Ray, and what the cluster offers."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.errors import ProfuserError, UserError
from profuser.recipe.models import ModelConfig
from profuser.recipe.resources import PoolConfig
from profuser.recipe.rewards import RewardConfig
from ray_jobs.runtime.environment import ENVIRONMENT, set_defaults

MIN_LOGICAL_CPUS = 4
"""A machine with fewer cores declares so many: otherwise a stage's workers leave none for the tasks that feed them."""

LOG_LEVELS = {
    "ray.data._internal.execution": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    # Stages of several sources log at one time.
    "ray.data._internal.logging": logging.WARNING,
    # What an actor raises is raised here too: Ray's own account of it would only come before.
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.serve": logging.ERROR,
    "ray.train": logging.ERROR,
}


@contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS (or the job) names, or starts one on this machine and stops it at the end."""
    if ray.is_initialized():
        yield
        return
    set_defaults()
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    # What workers print stays in Ray's own log files: here it would bury the progress lines.
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    if "RAY_ADDRESS" in os.environ:
        # The nodes were started without them.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    else:
        options |= {"address": "local", "num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)}
    try:
        with _muted_stderr():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise UserError(f"Ray: cannot connect to {where}: {' '.join(str(error).split())[:200]}") from None
    try:
        with _ended_by_sigterm():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM (`ray job stop`, a preempted pod) unwinds the driver as Ctrl-C does; Ray's own handler would abort it on the spot."""
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
    """Nothing on file descriptor 2 within: Ray's C++ part announces there, past Python, at which level it logs."""
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
    """GPUs of the whole cluster."""
    return ray.cluster_resources().get("GPU", 0.0)


def gpus_for(model: ModelConfig | RewardConfig) -> float:
    """Returns the GPUs of one actor: as its pool requests, else what its parallelism needs where there are GPUs."""
    if model.pool.num_gpus is not None:
        return model.pool.num_gpus
    return float(model.num_devices) if total_gpus() else 0.0


def resources_of(pool: PoolConfig, num_gpus: float) -> dict[str, Any]:
    """What one actor or task of a pool asks Ray for."""
    asked: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": num_gpus}
    return asked | ({"accelerator_type": pool.accelerator_type} if pool.accelerator_type else {})


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """Puts a task or an actor on the driver's node: any other may go while a stage goes on."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def may_bring_nodes() -> bool:
    """Whether this is a cluster, which may bring nodes where some are wanted, and not one machine alone."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_fits(what: str, num_cpus: float, num_gpus: float, count: int = 1) -> None:
    """Raises UserError where a cluster that does not autoscale can never place this, instead of waiting for ever."""
    if may_bring_nodes():
        return
    have = ray.cluster_resources()
    for name, need in (("CPU", num_cpus * count), ("GPU", num_gpus * count)):
        if need > have.get(name, 0.0):
            raise UserError(
                f"{what} needs {need:g} {name}s ({count} x {need / count:g}), this machine has {have.get(name, 0.0):g}; "
                "lower its pool or workers in the recipe"
            )


def own_cause(error: RayTaskError) -> BaseException:
    """The error that a task or actor raised, where it is one of ours; else the wrapped one with its remote traceback."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if isinstance(inner, ProfuserError):
            return inner
        cause = inner if isinstance(inner, BaseException) and inner is not cause else cause.__cause__
    return error
