"""Writes `summary.json`, the progress of a run."""

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
    """State of every stage, written to `summary.json` for people and programs that monitor a run."""

    def __init__(self, run: FusionRun, lock: RunLock, artifacts: Iterable[Artifact]):
        self.run, self.lock, self.writing = run, lock, threading.Lock()
        found = {artifact.stage: None if artifact.changes() else artifact.manifest() for artifact in artifacts}
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
        """Returns whether every stage is finished."""
        return all(entry["state"] == "finished" for entry in self.content["stages"].values())

    def end(self, state: str) -> None:
        """Sets the state of the run: `finished`, `stopped` (with stages left, as requested) or `failed`."""
        self.content["state"] = state
        self._write(state)

    def _write(self, state: str) -> None:
        # Every stage begins and ends here: a driver that was declared dead in the meantime stops here.
        if state != "failed":
            self.lock.check()
            self.run.folder.write_json(SUMMARY, self.content)
            return
        # The storage itself may have failed: then the first error is the one to show, without another retry.
        with suppress(StorageError):
            self.lock.check(retry_seconds=0.0)
            self.run.folder.without_retry().write_json(SUMMARY, self.content)


def _entry(state: str, manifest: Manifest | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"state": state}
    if manifest:
        entry |= {"seconds": manifest.seconds, "counts": manifest.counts, "metrics": manifest.metrics}
        entry["fingerprint"] = manifest.fingerprint
    return entry
