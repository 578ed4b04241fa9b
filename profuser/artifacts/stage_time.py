"""Measures the time of a stage over all its attempts, by notes in the artifact's folder, summed into its manifest.

A killed process cannot report its time. So each process that holds devices for a stage records how long it has held them: when it
gets them, when it has loaded, and then with every shard that it writes. The driver that finishes the stage adds up the notes.
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
    """Time note of one process."""

    began: float
    """Start of its attempt at the stage, in seconds since the epoch by the driver's clock."""
    until: float
    """Time of the note, by the process's own clock. Only a killed attempt is measured by both clocks."""
    device_seconds: float
    """Seconds since the process got its devices, times their number."""
    has_loaded: bool = True
    """False until the first `DeviceClock.note`: the process has its devices, and is loading."""


@dataclass(frozen=True)
class StageTime:
    """Sums over the attempts; a killed one counts up to the last note of its processes."""

    seconds: float
    """Wall time."""
    device_seconds: float
    """Seconds that processes held their devices, times the devices that each held."""


class DeviceClock:
    """Records how long a process holds devices for a stage. Created as soon as it holds them; several threads may write notes.

    Args:
        artifact: artifact of the stage.
        num_devices: devices that the process holds.
        began: start of this attempt at the stage, in seconds since the epoch.
    """

    def __init__(self, artifact: Artifact, num_devices: float, began: float):
        self.folder, self.name = _folder(artifact), f"{uuid.uuid4().hex}.json"
        self.num_devices, self.began, self.start = num_devices, began, time.monotonic()
        self._write(has_loaded=False)

    def note(self) -> None:
        """Records how long the process has held its devices; replaces its last note."""
        self._write(has_loaded=True)

    def _write(self, has_loaded: bool) -> None:
        held = self.num_devices * (time.monotonic() - self.start)
        self.folder.write_json(self.name, asdict(TimeNote(self.began, time.time(), held, has_loaded)))


def stage_time(artifact: Artifact, seconds: float) -> StageTime:
    """Returns the time of a stage up to now.

    Args:
        artifact: artifact of the stage.
        seconds: wall time of the current attempt, which ends now.
    """
    notes, now = _notes(artifact), time.time()
    spans = [(note.began, note.until) for note in notes]
    return StageTime(
        union_seconds([*spans, (now - seconds, now)]) if spans else seconds,
        sum(note.device_seconds for note in notes),
    )


def count_device_holders(artifact: Artifact, began: float) -> tuple[int, int]:
    """Counts the processes that got devices in the attempt that began then (dead ones too), and those of them that have loaded."""
    have_loaded = [note.has_loaded for note in _notes(artifact) if note.began == began]
    return len(have_loaded), sum(have_loaded)


def union_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of half-open time spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def clear_notes(artifact: Artifact) -> None:
    """Deletes the notes of a finished stage."""
    (artifact.folder / NOTES).delete()


def _notes(artifact: Artifact) -> list[TimeNote]:
    folder = _folder(artifact)
    return [TimeNote(**folder.read_json(name)) for name in folder.names() if name.endswith(".json")]


def _folder(artifact: Artifact) -> Folder:
    """Returns the folder of the notes of this fingerprint: time spent on other settings does not count."""
    return artifact.folder / NOTES / artifact.fingerprint
