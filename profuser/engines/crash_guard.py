"""Finds the rows that crash an engine: each attempt is recorded in a note before it starts, so the note outlives the process.

A process that a row kills (a segmentation fault, a device assertion, out of memory) cannot report anything. So a note is stored
for each shard while it is being processed; a process that finds a note knows that the previous attempt died. One death may have
another cause (a killed or preempted node): the shard is simply retried. After the second death the shard runs alone in the
engine, and its rows are bisected until the crashing ones are isolated.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from profuser.errors import EngineError
from profuser.storage.folder import Folder

Result = TypeVar("Result")
SEARCH_AFTER_DEATHS = 2
"""Deaths on a shard after which its rows are searched."""
MAX_DEATHS = 40
"""Deaths on a shard after which it is abandoned: about three crashing rows of 256."""


class EngineDeadError(EngineError):
    """An engine failed during its work; its process cannot continue."""


@dataclass
class AttemptNote:
    """Progress on a shard over all attempts."""

    deaths: int = 0
    trying: list[int] | None = None
    """Range of rows, `[start, stop]`, that is being tried alone."""
    suspects: list[list[int]] = field(default_factory=list)
    """Ranges still to be tried."""
    crashing: dict[str, str] = field(default_factory=dict)
    """Rows that crash the engine, by their index in the shard, with the engine's last message."""
    last_message: str = "its process died"
    """Message of the engine's last failure."""


def _read_note(folder: Folder, name: str) -> AttemptNote:
    """Reads a note, whose names may be those of older runs."""
    note: dict[str, Any] = folder.read_json(name)
    older = {"guilty": "crashing", "last_words": "last_message"}
    return AttemptNote(**{older.get(key, key): note[key] for key in note})


class CrashGuard:
    """Guards the shards of one artifact against crashing rows. Its methods may be called from several threads of one process.

    Args:
        folder: folder of the notes.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self._engine = SharedLock()

    @contextmanager
    def shard(self, index: int, num_rows: int) -> Iterator["Attempt"]:
        """Encloses the work on a shard, including the writing of its result. Deletes the note if the body succeeds.

        An EngineError that is no EngineDeadError (a server that cannot be reached) is no death: its rows are not searched.

        Raises:
            EngineError: too many attempts on this shard have died.
        """
        name = f"shard-{index:05d}.json"
        note = _read_note(self.folder, name) if self.folder.exists(name) else AttemptNote(deaths=-1)
        note.deaths += 1
        if note.deaths > MAX_DEATHS:
            raise EngineError(
                f"{self.folder.uri}: the engine died {MAX_DEATHS} times on shard {index} (last message: {note.last_message}); "
                "check the engine's settings and memory, then run again"
            )
        attempt = Attempt(self.folder, name, note, num_rows)
        attempt.begin()
        with self._engine.alone() if attempt.searching else self._engine.shared():
            try:
                yield attempt
            except EngineError as error:
                if not isinstance(error, EngineDeadError):
                    attempt.forget()
                raise
        self.folder.remove(name)


@dataclass
class Attempt:
    """One attempt at a shard."""

    folder: Folder
    name: str
    note: AttemptNote
    num_rows: int

    @property
    def searching(self) -> bool:
        """Whether the shard's rows are tried part by part."""
        return self.note.deaths >= SEARCH_AFTER_DEATHS

    def begin(self) -> None:
        """Updates the note from how the last attempt ended, and records that this one has started."""
        note = self.note
        if note.trying is not None:
            start, stop = note.trying
            if stop - start == 1:
                note.crashing[str(start)] = note.last_message
            else:
                middle = (start + stop) // 2
                note.suspects[:0] = [[start, middle], [middle, stop]]
        elif note.deaths == SEARCH_AFTER_DEATHS:
            note.suspects = [[0, self.num_rows]]
        note.trying = None
        self._save()

    def forget(self) -> None:
        """Records that this attempt ended without a death."""
        self.note.deaths, self.note.trying = self.note.deaths - 1, None
        if self.note.deaths < 0:
            self.folder.remove(self.name)
        else:
            self._save()

    def run(self, work: Callable[[list[int]], list[Result]]) -> tuple[list[Result], dict[int, str]]:
        """Runs the work on the rows that do not crash the engine.

        Args:
            work: takes row indices in the shard and returns a result for each.

        Returns:
            Results of all rows but the crashing ones, in order; and the crashing rows, with the reason.

        Raises:
            EngineDeadError: the engine failed; its message is recorded in the note.
        """
        try:
            while self.note.suspects:
                self.note.trying = self.note.suspects.pop(0)
                self._save()
                work(list(range(*self.note.trying)))
                self.note.trying = None
            self._save()
            healthy = [row for row in range(self.num_rows) if str(row) not in self.note.crashing]
            return work(healthy), {int(row): message for row, message in self.note.crashing.items()}
        except EngineDeadError as error:
            self.note.last_message = str(error)
            self._save()
            raise

    def _save(self) -> None:
        self.folder.write_json(self.name, asdict(self.note))


class SharedLock:
    """A readers-writer lock. A thread that waits for exclusive access blocks new shared holders."""

    def __init__(self):
        self._condition = threading.Condition()
        self._holders, self._alone, self._waiting = 0, False, 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the lock together with others."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone and not self._waiting)
            self._holders += 1
        try:
            yield
        finally:
            with self._condition:
                self._holders -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock exclusively."""
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(lambda: not self._alone and not self._holders)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()
