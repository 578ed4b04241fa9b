"""Finds the rows that crash an engine, over the deaths of its process: what is being tried is written down before it is tried.

A process that dies of a row (a segmentation fault, an assertion on the device, memory) can say nothing any more. So a note lies
beside a shard for as long as it is worked on; whoever finds a note knows that the one before him died there. One death may be
anybody's (a killed node, a preempted one): the shard is simply done again. After the second the shard runs alone in the engine, and
its rows are halved until the guilty ones stand by themselves.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from profuser.errors import EngineError
from profuser.storage.folder import Folder

Result = TypeVar("Result")
PATIENCE = 2
"""Deaths over a shard after which its rows are searched."""
MOST_DEATHS = 40
"""Deaths over a shard after which it is given up: some three guilty rows of 256."""


class EngineDeadError(EngineError):
    """An engine failed in the middle of its work; its process can do nothing more."""


@dataclass
class AttemptNote:
    """How far the work on a shard has come, over all attempts."""

    deaths: int = 0
    trying: list[int] | None = None
    """The range of rows, `[start, stop]`, that is being tried by itself."""
    suspects: list[list[int]] = field(default_factory=list)
    """Ranges that are still to be tried."""
    guilty: dict[str, str] = field(default_factory=dict)
    """Rows that crash the engine, by their place in the shard, and the last words of the engine."""
    last_words: str = "its process died"


class CrashGuard:
    """Watches over the shards of one artifact. Its methods may be called from several threads of one process.

    Args:
        folder: of the notes.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self._engine = SharedLock()

    @contextmanager
    def shard(self, index: int, num_rows: int) -> Iterator["Attempt"]:
        """The work on a shard, up to where its result is written. The note is taken away where the body ends well.

        Raises:
            EngineError: too many attempts on this shard have died.
        """
        name = f"shard-{index:05d}.json"
        note = AttemptNote(**self.folder.read_json(name)) if self.folder.exists(name) else AttemptNote(deaths=-1)
        note.deaths += 1
        if note.deaths > MOST_DEATHS:
            raise EngineError(
                f"{self.folder.uri}: the engine died {MOST_DEATHS} times over shard {index} (last words: {note.last_words}); "
                "see to the engine's settings or memory, then run again"
            )
        attempt = Attempt(self.folder, name, note, num_rows)
        attempt.begin()
        with self._engine.alone() if attempt.searching else self._engine.shared():
            yield attempt
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
        """Whether the shard's rows are tried one part after another."""
        return self.note.deaths >= PATIENCE

    def begin(self) -> None:
        """Draws the conclusion from how the last attempt ended, and notes that this one has begun."""
        note = self.note
        if note.trying is not None:
            start, stop = note.trying
            if stop - start == 1:
                note.guilty[str(start)] = note.last_words
            else:
                middle = (start + stop) // 2
                note.suspects[:0] = [[start, middle], [middle, stop]]
        elif note.deaths == PATIENCE:
            note.suspects = [[0, self.num_rows]]
        note.trying = None
        self._save()

    def run(self, work: Callable[[list[int]], list[Result]]) -> tuple[list[Result], dict[int, str]]:
        """Does the work on the rows that crash nothing.

        Args:
            work: takes places of rows in the shard, gives a result for each.

        Returns:
            Results in order, of all rows but the guilty ones; and these, with the reason.

        Raises:
            EngineDeadError: the engine failed; its last words are noted.
        """
        try:
            while self.note.suspects:
                self.note.trying = self.note.suspects.pop(0)
                self._save()
                work(list(range(*self.note.trying)))
                self.note.trying = None
            self._save()
            healthy = [row for row in range(self.num_rows) if str(row) not in self.note.guilty]
            return work(healthy), {int(row): words for row, words in self.note.guilty.items()}
        except EngineDeadError as error:
            self.note.last_words = str(error)
            self._save()
            raise

    def _save(self) -> None:
        self.folder.write_json(self.name, asdict(self.note))


class SharedLock:
    """Held by many at one time, or by one alone; who wants it alone waits for the others, and they for him."""

    def __init__(self):
        self._condition = threading.Condition()
        self._holders, self._alone, self._waiting = 0, False, 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """With others."""
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
        """Without any other."""
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
