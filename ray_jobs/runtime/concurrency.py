"""Jobs of one stage in threads of the driver: as many at one time as there is room for, the next beginning while one drains."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass

import ray

from profuser.recipe.models import Recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import gpus_for, total_gpus
from ray_jobs.runtime.shards import Draining

END_SECONDS = 20.0
"""How long an interrupted job may take to let go."""
Work = Callable[[Draining], None]
"""Does a job; calls what it is given once nothing of it is left to begin."""


def run_concurrently(works: Sequence[Work], at_once: int) -> None:
    """Does all jobs, begun in order, at most `at_once` of them at one time; one that drains makes room for the next.

    The first that fails, or an interruption of the driver, ends the others too. A single job is done in the driver's own thread.

    Raises:
        Exception: whatever a job raised first.
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
    """Places for those that may run at one time."""

    room: threading.Semaphore
    ended: bool = False

    def end(self, count: int) -> None:
        """Lets all that wait go, without a turn."""
        self.ended = True
        self.room.release(count)


class _Job(threading.Thread):
    """A job that waits for its turn; it takes its place once, and gives it up once."""

    def __init__(self, work: Work, turns: _Turns):
        super().__init__(daemon=True)
        self.work, self.turns = work, turns
        self.future: Future[None] = Future()
        self._given_up = self._running = False

    def run(self) -> None:
        self.turns.room.acquire()
        try:
            if not self.turns.ended:
                self._running = True
                self.work(self._give_up)
            self._running = False
            self.future.set_result(None)
        except BaseException as error:  # whatever it is, the driver's own thread raises it
            self._running = False
            self.future.set_exception(error)
        finally:
            self._give_up()

    def interrupt(self) -> None:
        """Interrupts it where it is at work, as Ctrl-C would, so that it lets go of its actors before Ray is disconnected."""
        if self._running and self.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))

    def _give_up(self) -> None:
        if not self._given_up:
            self._given_up = True
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
    """How many sources the cluster has room for at one time, at least one.

    With GPUs, as many as their pools' first actors fit on them; without, one per node, since an engine on CPUs takes all cores.
    """
    if recipe.collect.sources_at_once:
        return recipe.collect.sources_at_once
    if not total_gpus():
        return max(1, nodes_with_cpus())
    left, fitting = total_gpus(), 0
    for source in recipe.sources:
        left -= gpus_for(source) * source.pool.min_actors
        fitting += left >= 0
    return max(1, fitting)


def concurrent_rewards(recipe: Recipe) -> int:
    """Returns how many rewards fit on the cluster concurrently, at least one: by CPUs, and reward models also by GPUs."""
    cpus, gpus, fitting = ray.cluster_resources().get("CPU", 0), total_gpus(), 0
    for reward in recipe.rewards:
        cpus -= reward.pool.num_cpus * reward.pool.min_actors
        gpus -= gpus_for(reward) * reward.pool.min_actors
        fitting += cpus >= 0 and gpus >= 0
    return max(1, fitting)


def concurrent_models(run: FusionRun) -> int:
    """Returns how many evaluated models the cluster has room for, at least one: on GPUs by what each needs, else one per node."""
    needs = [gpus_for(config) for config in map(run.evaluated_config, run.evaluated())]
    return max(1, int(total_gpus() // max(needs))) if max(needs) else max(1, nodes_with_cpus())


def nodes_with_cpus() -> int:
    """Nodes of the cluster that have CPUs to give."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
