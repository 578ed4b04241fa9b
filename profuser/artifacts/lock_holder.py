"""Reads the holder of a run from its `lock.json`, and checks whether that process is alive."""

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
    """The driver that holds a run: the content of its lock."""

    token: str
    """Random id of this holding."""
    host: str
    pid: int
    machine: str | None
    """Host, boot and process namespace: the process is visible from here if this process has the same. None without /proc."""
    process_start: str | None
    """Start time of the process, in clock ticks since boot: a later process with the same pid has another."""
    since: str
    """Time at which it took the lock, by its own clock; for people."""
    heartbeat: str
    """Time of the last renewal, by its own clock; for people, and to distinguish one renewal from the next."""

    @classmethod
    def new(cls) -> "Holder":
        """Returns a holder for this process, now."""
        pid, now = os.getpid(), datetime.now(UTC)
        since = f"{now:%Y-%m-%d %H:%M:%S} UTC"
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _machine(), process_start(pid), since, now.isoformat())

    @classmethod
    def parse(cls, data: bytes) -> "Holder | None":
        """Parses a lock file; returns None if it is damaged."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def renewed(self) -> "Holder":
        """Returns the same holder with a new heartbeat."""
        return replace(self, heartbeat=datetime.now(UTC).isoformat())

    def data(self) -> bytes:
        """Returns the lock file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_visible(self) -> bool:
        """Returns whether this process can see the holder's: same machine, same boot, same namespace."""
        return self.machine is not None and self.machine == _machine()

    def is_gone(self) -> bool:
        """Returns whether the holder's process is visible and has ended."""
        return self.is_visible() and process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


def read_lock(folder: Folder) -> bytes | None:
    """Returns a run's lock file; None if there is no lock."""
    try:
        return folder.read_bytes(LOCK)
    except FileNotFoundError:
        return None


def read_holder(folder: Folder) -> Holder | None:
    """Returns the holder of a run, alive or not; None if there is no lock."""
    data = read_lock(folder)
    return Holder.parse(data) if data else None


def process_start(pid: int) -> str | None:
    """Returns a process's start time in clock ticks since boot; None for no process, a zombie, or a system without /proc."""
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
