"""Who drives a run: what `lock.json` in its folder says, and whether that process still lives."""

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from profuser.storage.folder import Folder

LOCK = "lock.json"


@dataclass(frozen=True)
class Holder:
    """Who drives a run: what the lock says."""

    token: str
    """Random; tells one holding from another."""
    host: str
    pid: int
    machine: str | None
    """Boot and process namespace: where it equals ours, the holder's process can be seen from here. None: it never can."""
    process_start: str | None
    """When the process started, in clock ticks since boot: a later process with the same pid has another."""
    since: str
    """When it took the lock, by its own clock; for people."""
    heartbeat: str
    """When it last renewed it, by its own clock; for people, and to tell one renewal from the next."""

    @classmethod
    def new(cls) -> "Holder":
        """This process, now."""
        pid, now = os.getpid(), datetime.now(UTC)
        since = f"{now:%Y-%m-%d %H:%M:%S} UTC"
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _machine(), process_start(pid), since, now.isoformat())

    @classmethod
    def parse(cls, data: bytes) -> "Holder | None":
        """What a lock file says; None where it is damaged."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def renewed(self) -> "Holder":
        """The same holding, with a sign of life."""
        return replace(self, heartbeat=datetime.now(UTC).isoformat())

    def data(self) -> bytes:
        """The lock file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_visible(self) -> bool:
        """Whether this process can see the holder's: same machine, same boot, same namespace."""
        return self.machine is not None and self.machine == _machine()

    def is_gone(self) -> bool:
        """Whether the holder's process is seen to have ended."""
        return self.is_visible() and process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


def read_lock(folder: Folder) -> bytes | None:
    """A run's lock file; None where nobody holds it."""
    try:
        return folder.read_bytes(LOCK)
    except FileNotFoundError:
        return None


def read_holder(folder: Folder) -> Holder | None:
    """Who holds a run, alive or not; None where nobody does."""
    data = read_lock(folder)
    return Holder.parse(data) if data else None


def process_start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where there is none, it is a zombie, or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; what follows it is state (field 3) ... start time (field 22).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
