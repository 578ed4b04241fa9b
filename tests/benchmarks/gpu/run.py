"""Runs the benchmark of one GPU: a failing group stops no other, and every row is written at once."""

import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from profuser.artifacts.artifact import git_commit
from tests.benchmarks.gpu import engine, loss, train
from tests.benchmarks.gpu.device import FULL, GPU, LEFT_OUT, TINY, Sizes, driver, free, now, reason
from tests.benchmarks.gpu.wheels import COMMIT, FOLDER
from tests.benchmarks.measure import Row

OUTPUT = Path("benchmarks-gpu.json")


def groups(sizes: Sizes, profiles: dict[str, Any]) -> Mapping[str, Callable[[], Iterator[Row]]]:
    """Returns the groups, the most important first: an interrupted run keeps its finished rows."""
    found: dict[str, Callable[[], Iterator[Row]]] = {}
    for vocab_size in sizes.vocab_sizes:
        found[f"loss, vocabulary {vocab_size:,}"] = partial(loss.run, sizes, vocab_size)
    for name in sizes.targets:
        found[f"update of {name}"] = partial(train.update, sizes, name, profiles)
    found["attention"] = partial(train.attention, sizes)
    found["Transformers engine"] = partial(engine.engine, sizes)
    found["transport"] = partial(engine.transport, sizes)
    return found


def run(show: Callable[[str, list[Row]], None], tiny: bool = False, output: Path = OUTPUT) -> list[str]:
    """Runs every group and shows its rows; writes the file after each row.

    Args:
        show: receives a group's name and rows.
        tiny: use sizes at which everything runs on a CPU in a minute; the figures are meaningless.
        output: the JSON file.

    Returns:
        Groups that could not run or finish, with the reason.
    """
    sizes = TINY if tiny else FULL
    if not (GPU or tiny):
        raise SystemExit("bench-gpu: no GPU here; --tiny runs all of it on a CPU, at sizes whose figures say nothing")
    profiles: dict[str, Any] = {}
    facts: dict[str, Any] = machine() | {"tiny": tiny, "rows": [], "failed": {}, "left_out": [], "profiles": profiles}
    for name, measure in groups(sizes, profiles).items():
        start, rows = now(), []
        try:
            for row in measure():
                rows.append(row)
                facts["rows"].append(asdict(row) | {"ratio": row.ratio, "group": name})
                _write(facts, output)
        # A group that cannot run here must not stop the others.
        except Exception as error:
            facts["failed"][name] = reason(error)
            traceback.print_exc(file=sys.stderr)
        free()
        facts["left_out"] += [f"{name}: {each}" for each in LEFT_OUT]
        LEFT_OUT.clear()
        _write(facts, output)
        show(f"{name} ({now() - start:.0f} s)", rows)
    return [*(f"{name}: {why}" for name, why in facts["failed"].items()), *facts["left_out"]]


def _write(facts: dict[str, Any], output: Path) -> None:
    """Writes all results atomically: a run may be interrupted at any moment."""
    new = output.with_name(f"{output.name}.new")
    new.write_text(json.dumps(facts, indent=2) + "\n")
    new.replace(output)


def machine() -> dict[str, Any]:
    """Returns the machine and the versions of the measured software."""
    device = torch.cuda.get_device_name(0) if GPU else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {"commit": commit(), "device": device, "driver": driver(), "python": platform.python_version()} | {
        name: _version(name) for name in ("torch", "triton", "transformers", "liger-kernel")
    }


def commit() -> str | None:
    """Returns the commit of the checkout, or of the one in which the wheels were gathered."""
    found = git_commit()
    with suppress(OSError):
        found = found or (FOLDER / COMMIT).read_text().strip()
    return found


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version(name)
    return None
