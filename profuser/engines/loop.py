"""Drives an engine from one thread for many callers: their requests share its batches, so that it is never idle."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from profuser.engines.base import Request, Response, SourceEngine
from profuser.engines.crash_guard import EngineDeadError
from profuser.errors import ProfuserError


class EngineLoop:
    """Runs an engine in its own thread. `run` may be called from several threads concurrently.

    A caller that works on a shard waits only for its own requests; while one shard ends, those of the next are in the batch.
    """

    def __init__(self, engine: SourceEngine):
        self.engine = engine
        self.observe: Callable[[SourceEngine, int], None] = lambda engine, num_requests: None
        """Called in the loop's thread after each step, with the number of requests without a response."""
        self._incoming: queue.SimpleQueue[tuple[Request, Future[Response]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[Request], answered: Callable[[int], None] | None = None) -> list[Response]:
        """Runs requests of both kinds, mixed, and returns their responses in order.

        Args:
            requests: what to run.
            answered: called in the loop's thread as each response arrives, with the index of its request.

        Raises:
            EngineDeadError: the engine failed; all later requests fail too.
            ProfuserError: the engine cannot be used, as its message says; all later requests fail too.
        """
        futures: list[Future[Response]] = [Future() for _ in requests]
        if answered:
            for index, future in enumerate(futures):
                future.add_done_callback(partial(_call_if_answered, answered, index))
        for pair in zip(requests, futures, strict=True):
            self._incoming.put(pair)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Stops the thread once all requests are done, and frees the model."""
        self._incoming.put(None)
        self._thread.join()
        self.engine.close()

    def _work(self) -> None:
        owners: dict[int, Future[Response]] = {}
        try:
            for number, (request, future) in enumerate(self._requests(owners)):
                owners[number] = future
                self.engine.add(number, request)
        except Exception as error:  # raised in the callers: an exception in this thread would go unnoticed
            died: Exception = error
            if not isinstance(error, ProfuserError):
                died = EngineDeadError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                died.__cause__ = error
            for future in owners.values():
                future.set_exception(died)
            while (pair := self._incoming.get()) is not None:
                pair[1].set_exception(died)

    def _requests(self, owners: dict[int, Future[Response]]) -> Iterator[tuple[Request, Future[Response]]]:
        """Yields requests as they arrive; while none arrives and work is pending, steps the engine."""
        while True:
            try:
                pair = self._incoming.get(block=not owners)
            except queue.Empty:
                for number, response in self.engine.step():
                    owners.pop(number).set_result(response)
                self.observe(self.engine, len(owners))
                continue
            if pair is None:
                return
            yield pair


def _call_if_answered(answered: Callable[[int], None], index: int, future: Future[Response]) -> None:
    if future.exception() is None:
        answered(index)
