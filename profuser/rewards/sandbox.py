"""Runs code in a sandbox: a process with limits, without network, environment or other folders to write to (`sandboxed.py`)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from profuser.errors import EngineError

PROGRAM = Path(__file__).with_name("sandboxed.py")
GRACE_SECONDS = 60.0
"""Time after its limit that the sandbox has to end by itself, and to start on a busy machine."""


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of a sandbox."""

    seconds: float
    """Time for the code and all its tests together."""
    memory_bytes: int
    """Address space of each process."""
    isolate: bool = True
    """Whether it has namespaces of its own; without them the limits alone hold."""
    file_bytes: int = 16 << 20
    """Size of each file."""
    folder_bytes: int = 64 << 20
    """Size of the folder that it works in, with `isolate`."""
    processes: int = 64
    """Number of processes and threads. Without `isolate` root has no such limit."""


class Outcome(NamedTuple):
    """What became of a job."""

    passed: int
    """Number of tests that passed."""
    reason: str | None
    """Kind of the first failure: `wrong` (an assertion), `with_errors`, `not_python`, `out_of_time`, `out_of_memory`."""


class SandboxError(EngineError):
    """The sandbox cannot be made on this machine; the message is the reason."""


def run_tests(code: str, tests: Sequence[str], limits: SandboxLimits) -> Outcome:
    """Runs code, and then its tests in order, in one process.

    A test that ends the process, or uses up the time, fails those after it. The result is safe from what code does by accident
    (`sys.exit`, output, threads); code that is written to attack the program which runs it could forge the result.

    Raises:
        SandboxError: the machine does not allow the sandbox.
    """
    with tempfile.TemporaryDirectory(prefix="profuser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder},
            start_new_session=True,
        )
        try:
            job = json.dumps({"code": code, "tests": list(tests)}).encode()
            text = process.communicate(job, limits.seconds + GRACE_SECONDS)[0]
        except subprocess.TimeoutExpired:
            return Outcome(0, "out_of_time")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not text and not limits.isolate:
        return Outcome(0, "with_errors")  # The code has ended the process that runs it.
    if not text:
        raise SandboxError(f"its process ended with status {process.returncode}")
    result = json.loads(text)
    if "fault" in result:
        raise SandboxError(result["fault"])
    return Outcome(**result)


@lru_cache(1)
def missing_isolation() -> str | None:
    """Returns why this machine cannot isolate code; None if it can. Found by running a small program that imports some modules."""
    try:
        code = "import collections, decimal, itertools, json, math, random, re, string"
        outcome = run_tests(code, ["assert math.pi > 3"], SandboxLimits(seconds=20, memory_bytes=1 << 30))
    except SandboxError as error:
        return str(error)
    return None if outcome.reason is None else "Python's own modules cannot be read there by a user without privileges"
