"""`summary.json`: how far a run is."""

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.lock import RunLock
from profuser.errors import StorageError
from profuser.run.fusion_run import FusionRun

SUMMARY = "summary.json"


class RunSummary:
    """`summary.json`: the state of every stage, for people and programs that watch a run."""

    def __init__(self, run: FusionRun, lock: RunLock, artifacts: Iterable[Artifact]):
        self.run, self.lock, self.writing = run, lock, threading.Lock()
        found = {artifact.stage: artifact.manifest() for artifact in artifacts}
        self.content: dict[str, Any] = {
            "run": run.recipe.name,
            "state": "running",
            "stages": {
                name: _entry("finished" if manifest else "waiting", manifest) for name, manifest in found.items()
            },
        }

    def stage(self, name: str, state: str, manifest: Manifest | None = None) -> None:
        """Sets the state of a stage: `waiting`, `running`, `finished` or `failed`."""
        with self.writing:
            self.content["stages"][name] = _entry(state, manifest)
            self._write(state)

    def is_finished(self) -> bool:
        """Whether every stage is."""
        return all(entry["state"] == "finished" for entry in self.content["stages"].values())

    def end(self, state: str) -> None:
        """Sets the state of the run: `finished`, `stopped` (with stages left, as asked) or `failed`."""
        self.content["state"] = state
        self._write(state)

    def _write(self, state: str) -> None:
        # Every stage begins and ends here: a driver that was taken for dead meanwhile goes no further.
        if state != "failed":
            self.lock.check()
            self.run.folder.write_json(SUMMARY, self.content)
            return
        # What failed may be the storage: then that is the error to show, and there was enough waiting.
        with suppress(StorageError):
            self.lock.check(retry_seconds=0.0)
            self.run.folder.without_retry().write_json(SUMMARY, self.content)


def _entry(state: str, manifest: Manifest | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"state": state}
    if manifest:
        entry |= {"seconds": manifest.seconds, "counts": manifest.counts, "metrics": manifest.metrics}
        entry["fingerprint"] = manifest.fingerprint
    return entry
