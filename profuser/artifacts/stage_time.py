"""What a stage took in time, over all its attempts: notes in the artifact's folder, until its manifest has their sums.

A process that is killed says nothing any more. So each one that holds devices for a stage writes down how long it has held them,
first when it gets them, again when it has loaded, and then with every shard that it has written. Whoever finishes the stage adds up
what all of them noted.
"""

import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from profuser.artifacts.artifact import Artifact
from profuser.storage.folder import Folder

NOTES = "time"


@dataclass(frozen=True)
class TimeNote:
    """What one process says of itself."""

    began: float
    """When its attempt at the stage began, in seconds since the epoch by the driver's clock."""
    until: float
    """When it wrote this, by its own clock. Only an attempt that was killed is measured by the two clocks."""
    device_seconds: float
    has_loaded: bool = True
    """False until its first `DeviceClock.note`: it has its devices, and loads."""


@dataclass(frozen=True)
class StageTime:
    """Sums over the attempts; of one that was killed, up to the last note of its processes."""

    seconds: float
    """Wall time."""
    device_seconds: float
    """Seconds that processes held their devices, times the devices that each held."""


class DeviceClock:
    """Made, and noted, by a process as soon as it holds devices for a stage; its notes may come from several threads.

    Args:
        artifact: what the stage makes.
        num_devices: those that the process holds.
        began: when this attempt at the stage began, in seconds since the epoch.
    """

    def __init__(self, artifact: Artifact, num_devices: float, began: float):
        self.folder, self.name = _folder(artifact), f"{uuid.uuid4().hex}.json"
        self.num_devices, self.began, self.start = num_devices, began, time.monotonic()
        self._write(has_loaded=False)

    def note(self) -> None:
        """Writes down how long the process has held its devices, in the place of its last note."""
        self._write(has_loaded=True)

    def _write(self, has_loaded: bool) -> None:
        held = self.num_devices * (time.monotonic() - self.start)
        self.folder.write_json(self.name, asdict(TimeNote(self.began, time.time(), held, has_loaded)))


def stage_time(artifact: Artifact, seconds: float) -> StageTime:
    """What a stage took up to now.

    Args:
        artifact: what it makes.
        seconds: wall time of the present attempt, which ends now.
    """
    notes, now = _notes(artifact), time.time()
    spans = [(note.began, note.until) for note in notes]
    return StageTime(
        covered_seconds([*spans, (now - seconds, now)]) if spans else seconds,
        sum(note.device_seconds for note in notes),
    )


def num_holders(artifact: Artifact, began: float) -> tuple[int, int]:
    """Processes that have got devices in the attempt that began then, dead ones among them; and those of them that have loaded."""
    have_loaded = [note.has_loaded for note in _notes(artifact) if note.began == began]
    return len(have_loaded), sum(have_loaded)


def covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what half-open spans of time cover together; what several of them cover counts once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def clear_notes(artifact: Artifact) -> None:
    """Deletes the notes of a stage that is finished."""
    (artifact.folder / NOTES).delete()


def _notes(artifact: Artifact) -> list[TimeNote]:
    folder = _folder(artifact)
    return [TimeNote(**folder.read_json(name)) for name in folder.names() if name.endswith(".json")]


def _folder(artifact: Artifact) -> Folder:
    """Of the notes of this fingerprint alone: time that went into other settings is not this artifact's."""
    return artifact.folder / NOTES / artifact.fingerprint
