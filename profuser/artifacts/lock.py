"""Allows one driver per run: `lock.json` in the run's folder, renewed while its holder runs, deleted when it ends.

If the holder's process is visible from here, its death is known at once: the process is gone, or its pid now belongs to another
process. A holder elsewhere (another host, container, or boot) is *watched*: a lock that changes is alive, one not written for
`STALE_SECONDS` is dead. Its age so far is measured by the storage's clock, the rest by the watcher's clock; clocks of two machines
are never compared.

Limits. A local folder gives the lock to exactly one of several drivers. An object store does not: a driver writes its lock, waits
`SETTLE_SECONDS`, and checks that the lock is still its own. If two drivers write with more time than that
between them, both may continue until the earlier one renews its lock (`HEARTBEAT_SECONDS`) and stops. The same holds for a driver
that was suspended for longer than `STALE_SECONDS` and taken for dead. Until then both write the same rows under the same names,
atomically.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from profuser.artifacts.lock_holder import LOCK, Holder, read_holder, read_lock
from profuser.errors import ProfuserError, StorageError, UserError
from profuser.storage.folder import Folder

HEARTBEAT_SECONDS, STALE_SECONDS, SETTLE_SECONDS = 10.0, 60.0, 2.0
"""Defaults of `RunLock`, which documents them."""
TAKING_FILE = f".{LOCK}.taking.tmp"
"""File that exactly one of several drivers creates: only that one reads and writes the lock."""
TERMINATED = 128 + signal.SIGTERM
TAKEOVER_SIGNAL = signal.SIGUSR2
"""Signal that interrupts the main thread when another driver has taken over the run."""

log = logging.getLogger(__name__)


class RunLock:
    """Context manager that locks a run while its body runs.

    Args:
        folder: the run's folder.
        heartbeat_seconds: time between renewals.
        stale_seconds: time without a renewal after which a holder that is not visible counts as dead.
        settle_seconds: time that a driver waits on an object store before it checks that the lock is still its own.
        on_heartbeat: called before each renewal, in the lock's own thread.

    Raises:
        UserError: another driver holds the lock, or the folder is not writable.
        ProfuserError: another driver has taken over the run; from `check`, or at the end of a body interrupted for it.
    """

    def __init__(
        self,
        folder: Folder,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
        on_heartbeat: Callable[[], None] = lambda: None,
    ):
        self.folder, self.own = folder, Holder.new()
        self.heartbeat_seconds, self.stale_seconds = heartbeat_seconds, stale_seconds
        self.settle_seconds, self.on_heartbeat = settle_seconds, on_heartbeat
        self._ended, self._is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)

    def __enter__(self) -> "RunLock":
        self.folder.check_writable()
        self.folder.sweep()
        self._acquire()
        self._in_main = threading.current_thread() is threading.main_thread()
        # Without this, SIGTERM ends the process without clean-up; a handler that is already set is kept.
        if self._in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        if self._in_main:
            # Not SIGINT, which a driver started in the background of a script ignores.
            self._handler = signal.signal(TAKEOVER_SIGNAL, _interrupted)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self.heartbeat_seconds)
        if self._in_main:
            signal.signal(TAKEOVER_SIGNAL, self._handler)
        if self._in_main and signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._is_lost and (error is None or isinstance(error, KeyboardInterrupt)):
            self.check()
        # An error here would hide one from the body. If the lock stays, other drivers find that its holder is dead.
        with suppress(StorageError, OSError):
            folder = self.folder.without_retry()
            if self._is_own(read_holder(folder)):
                folder.remove(LOCK)

    def check(self, retry_seconds: float | None = None) -> None:
        """Raises ProfuserError if another driver has taken over the run: to be called before each write.

        Args:
            retry_seconds: how long to wait for an unavailable storage (then StorageError); by default the folder's.
        """
        retry_seconds = self.folder.retry_seconds if retry_seconds is None else retry_seconds
        other = read_holder(replace(self.folder, retry_seconds=retry_seconds))
        if not self._is_own(other):
            by = f"another driver ({other})" if other else "someone who deleted its lock"
            raise ProfuserError(
                f"run {self.folder.uri} was taken over by {by}; this driver stops and writes nothing more"
            )

    def _is_own(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self.own.token

    def _acquire(self) -> None:
        first: bytes | None = None
        deadline = 0.0
        while True:
            found = read_lock(self.folder)
            holder = Holder.parse(found) if found else None
            if found is not None:
                if first is None:
                    first, deadline = found, time.monotonic() + self._seconds_left(holder)
                if found != first or (holder and holder.is_visible() and not holder.is_gone()):
                    raise UserError(self._refusal(holder))
            if found is None or (holder and holder.is_gone()) or time.monotonic() >= deadline:
                if self._take(found):
                    return
            else:
                time.sleep(self.heartbeat_seconds / 10)

    def _seconds_left(self, holder: Holder | None) -> float:
        """Returns how much longer a lock may go without a renewal before its holder counts as dead."""
        modified = self.folder.modified(LOCK)
        age = 0.0 if modified is None else max(0.0, self.folder.clock() - modified)
        left = max(0.0, self.stale_seconds - age)
        if holder and not holder.is_visible() and left:
            text = "run %s: held by a driver (%s), last heartbeat %.0f s ago; waiting up to %.0f s to see whether it is alive"
            log.warning(text, self.folder.uri, holder, age, left)
        return left

    def _refusal(self, holder: Holder | None) -> str:
        who = f"another driver ({holder})" if holder else "another driver"
        remedy = "wait for it or stop it; to run a second one, give it another name: --set name=NAME"
        return f"run {self.folder.uri}: {who} is running it; {remedy}"

    def _take(self, seen: bytes | None) -> bool:
        """Writes our lock if the lock file is still as `seen` (None: no lock); returns False if another driver was faster."""
        if not self.folder.is_local:
            if read_lock(self.folder) != seen:
                return False
            self.folder.write_bytes(LOCK, self.own.data())
            time.sleep(self.settle_seconds)
            return self._is_own(read_holder(self.folder))
        if not self.folder.create(TAKING_FILE, b""):
            self._wait_for_taking()
            return False
        try:
            if read_lock(self.folder) != seen:
                return False
            self.folder.write_bytes(LOCK, self.own.data())
            return True
        finally:
            self.folder.remove(TAKING_FILE)

    def _wait_for_taking(self) -> None:
        """Waits while another driver takes the lock; deletes its `TAKING_FILE` file if it was killed meanwhile."""
        time.sleep(self.heartbeat_seconds / 10)
        modified = self.folder.modified(TAKING_FILE)
        if modified is not None and self.folder.clock() - modified > self.stale_seconds:
            self.folder.remove(TAKING_FILE)

    def _keep(self) -> None:
        is_unavailable = False
        while not self._ended.wait(self.heartbeat_seconds):
            self.on_heartbeat()
            try:
                self._is_lost = not self._renew()
                is_unavailable = False
            except (StorageError, OSError) as error:
                if not is_unavailable:
                    log.warning("%s; the lock is renewed once the storage is available again", error)
                is_unavailable = True
            if self._is_lost:
                return self._interrupt()

    def _renew(self) -> bool:
        """Writes a heartbeat if the lock is still our own; returns whether it is."""
        folder = self.folder.without_retry()
        if not self._is_own(read_holder(folder)):
            return False
        # A driver suspended here for `stale_seconds` overwrites the lock of one that took over, which then finds it lost and stops.
        folder.write_bytes(LOCK, self.own.renewed().data())
        return True

    def _interrupt(self) -> None:
        """Interrupts the body, wherever it is; `__exit__` raises the reason."""
        main = threading.main_thread().ident
        if self._in_main and main and not self._ended.is_set():
            # A real signal: it also ends a wait inside C code.
            signal.pthread_kill(main, TAKEOVER_SIGNAL)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _terminate(*_: object) -> None:
    sys.exit(TERMINATED)
