"""Jobs of one stage in threads of the driver: as many at one time as there is room for, the next beginning while one drains."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

import ray

from profuser.recipe.models import Recipe
from ray_jobs.cluster import gpus_for, total_gpus
from ray_jobs.shards import Draining

Work = Callable[[Draining], None]
"""Does a job; calls what it is given once nothing of it is left to begin."""


def run_side_by_side(works: Sequence[Work], at_once: int) -> None:
    """Does all jobs, begun in order, at most `at_once` of them at one time; one that drains makes room for the next.

    The first that fails ends the wait at once; the others go down with the connection to Ray.

    Raises:
        Exception: whatever a job raised first.
    """
    room = threading.Semaphore(at_once)
    stopped = threading.Event()
    futures: list[Future[None]] = []
    for work in works:
        future: Future[None] = Future()
        futures.append(future)
        threading.Thread(target=_run, args=(work, _Turn(room), future, stopped), daemon=True).start()
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        stopped.set()


class _Turn:
    """A job's place among those that may run at one time; it is taken once, and given up once."""

    def __init__(self, room: threading.Semaphore):
        self.room, self._given_up = room, threading.Event()

    def give_up(self) -> None:
        """Lets the next job begin."""
        if not self._given_up.is_set():
            self._given_up.set()
            self.room.release()


def _run(work: Work, turn: _Turn, future: Future[None], stopped: threading.Event) -> None:
    turn.room.acquire()
    try:
        if not stopped.is_set():
            work(turn.give_up)
        future.set_result(None)
    except BaseException as error:  # whatever it is, the driver's own thread raises it
        future.set_exception(error)
    finally:
        turn.give_up()


def sources_at_once(recipe: Recipe) -> int:
    """How many sources the cluster has room for at one time, at least one.

    With GPUs, as many as their pools' first actors fit on them; without, one per node, since an engine on CPUs takes all cores.
    """
    if recipe.collect.sources_at_once:
        return recipe.collect.sources_at_once
    if not total_gpus():
        return max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))
    left, fitting = total_gpus(), 0
    for source in recipe.sources:
        left -= gpus_for(source, source.pool) * source.pool.min_actors
        fitting += left >= 0
    return max(1, fitting)
