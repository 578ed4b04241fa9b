"""Runs the jobs of one stage in driver threads: as many concurrently as fit, and the next one starts while one drains."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass

import ray

from profuser.recipe.models import Recipe, SourceConfig
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import gpus_for, total_gpus
from ray_jobs.runtime.nodes import free_cpus, nodes_with_cpus, share_of_cpus
from ray_jobs.runtime.shards import OnDraining

END_SECONDS = 20.0
"""Seconds that an interrupted job may take to end."""
Work = Callable[[OnDraining], None]
"""Runs a job; it calls its argument once all of its work has been started."""


def run_concurrently(works: Sequence[Work], at_once: int) -> None:
    """Runs all jobs, started in order, at most `at_once` concurrently; a draining job makes room for the next.

    The first failure, or an interruption of the driver, ends the other jobs too. A single job runs in the driver's own thread.

    Raises:
        Exception: the first error that a job raised.
    """
    if len(works) == 1:
        works[0](lambda: None)
        return
    turns = _Turns(threading.Semaphore(at_once))
    jobs = [_Job(work, turns) for work in works]
    for job in jobs:
        job.start()
    try:
        done, _ = wait([job.future for job in jobs], return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        turns.end(len(jobs))
        for job in jobs:
            job.interrupt()
        for job in jobs:
            job.join(END_SECONDS)


@dataclass
class _Turns:
    """Slots of the jobs that may run concurrently."""

    room: threading.Semaphore
    ended: bool = False

    def end(self, count: int) -> None:
        """Releases all waiting jobs without running them."""
        self.ended = True
        self.room.release(count)


class _Job(threading.Thread):
    """A job that waits for a slot; it acquires the slot once and releases it once."""

    def __init__(self, work: Work, turns: _Turns):
        super().__init__(daemon=True)
        self.work, self.turns = work, turns
        self.future: Future[None] = Future()
        self._released = self._running = False

    def run(self) -> None:
        self.turns.room.acquire()
        try:
            if not self.turns.ended:
                self._running = True
                self.work(self._release)
            self._running = False
            self.future.set_result(None)
        except BaseException as error:  # any error: the driver's own thread raises it
            self._running = False
            self.future.set_exception(error)
        finally:
            self._release()

    def interrupt(self) -> None:
        """Interrupts a running job as Ctrl-C would, so that it releases its actors before Ray is disconnected."""
        if self._running and self.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self.turns.room.release()


def concurrent_parts(kind: str, run: FusionRun) -> int:
    """Returns how many parts of a stage may run concurrently, by its `Stage.concurrency`."""
    match kind:
        case "sources":
            return concurrent_sources(run.recipe)
        case "rewards":
            return concurrent_rewards(run.recipe)
        case "models":
            return concurrent_models(run)
    return 1


def concurrent_sources(recipe: Recipe) -> int:
    """Returns how many sources fit on the cluster concurrently, at least one.

    With GPUs, as many as have pools whose minimum actors fit on them; without, one per node, since a CPU engine takes all cores.
    """
    if recipe.collect.sources_at_once:
        return recipe.collect.sources_at_once
    if not total_gpus():
        return max(1, len(nodes_with_cpus()))
    left, fitting = total_gpus(), 0
    for source in recipe.sources:
        left -= gpus_for(source) * source.pool.min_actors
        fitting += left >= 0
    return max(1, fitting)


def concurrent_rewards(recipe: Recipe) -> int:
    """Returns how many rewards fit on the cluster concurrently, at least one: by CPUs, and reward models also by GPUs."""
    cpus, gpus, fitting = ray.cluster_resources().get("CPU", 0), total_gpus(), 0
    share = share_of_cpus(free_cpus(), reward_models_at_once(recipe))
    for reward in recipe.rewards:
        own = reward.pool.num_cpus
        if own is None:
            own = share if reward.num_devices and not gpus_for(reward) else 1.0
        cpus -= own * reward.pool.min_actors
        gpus -= gpus_for(reward) * reward.pool.min_actors
        fitting += cpus >= 0 and gpus >= 0
    return max(1, fitting)


def concurrent_models(run: FusionRun) -> int:
    """Returns how many evaluated models fit on the cluster, at least one: on GPUs by what each needs, else one per node."""
    needs = [gpus_for(config) for config in map(run.evaluated_config, run.evaluated())]
    return max(1, int(total_gpus() // max(needs))) if max(needs) else max(1, len(nodes_with_cpus()))


def engines_at_once(recipe: Recipe, source: SourceConfig) -> int:
    """Returns how many engines run concurrently while a source is collected, if every pool is as large as this one."""
    return min(concurrent_sources(recipe), len(recipe.sources)) * source.pool.max_actors


def reward_models_at_once(recipe: Recipe) -> int:
    """Returns how many engines of reward models and generative judges run concurrently, if all rewards do."""
    loaded = (*recipe.reward_models, *(judge for judge in recipe.llm_judges if not judge.endpoint))
    return max(1, sum(reward.pool.max_actors for reward in loaded))
