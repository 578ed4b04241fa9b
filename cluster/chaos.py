"""Kills a node, actor, worker or driver of a fusion every 20 s, and checks that it ends with the same model.

`python -m cluster.chaos` starts a cluster on this machine and submits the run as a job, once undisturbed and once with kills. A
failed job is submitted again, a dead node is replaced. Only processes of that cluster are killed, and never the head.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import psutil
import typer
from rich.table import Table

from cluster.harness.node_processes import RAY, LocalCluster
from cluster.harness.run_comparison import ArtifactDifference, differences
from profuser.errors import ProfuserError, UserError
from profuser.recipe import load_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.cli.app import run_app
from ray_jobs.cli.options import RECIPES
from ray_jobs.runtime.progress import console, format_clock, print_line

KINDS = ("node", "actor", "worker", "driver")
"""Kinds of kills. A worker is the process of a task, or of an engine below its actor."""
DRIVER, SUPERVISOR = f"{sys.executable} -m ray_jobs run", "JobSupervisor"
"""Prefix of the driver's command line; class of the actor that Ray starts for every job, which is never killed."""
MORE_SUBMISSIONS = 20
"""Submissions beyond one per kill: a job submitted while the previous one is still ending is refused."""
PAUSE_SECONDS = 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Monkey:
    """Kills part of a cluster every `every_seconds`, in a thread, until `most` kills or the end of the `with`.

    Args:
        cluster: the cluster.
        most: maximum number of kills.
        every_seconds: seconds between two kills.
        seed: seed of the choices.
    """

    def __init__(self, cluster: LocalCluster, most: int, every_seconds: float, seed: int):
        self.cluster, self.most, self.every_seconds = cluster, most, every_seconds
        self.random, self.num_kills, self.start = random.Random(seed), 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Monkey":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while self.num_kills < self.most and not self._ended.wait(self.every_seconds):
            for kind in self.random.sample(KINDS, len(KINDS)):
                if what := self._kill(kind):
                    self.num_kills += 1
                    at = format_clock(time.monotonic() - self.start)
                    print_line(f"{at} kill {self.num_kills} of {self.most}: {kind} {what}")
                    break

    def _kill(self, kind: str) -> str | None:
        """Kills one of a kind and returns its description; None if there is none."""
        if kind == "node":
            node = self.random.choice(self.cluster.nodes)
            self.cluster.lose_node(node)
            return f"{node.root.pid}, with all of its processes"
        found = sorted(self._found(kind), key=lambda process: process.pid)
        if not found:
            return None
        process = self.random.choice(found)
        with suppress(psutil.NoSuchProcess):
            title = _title(process)
            process.kill()
            return f"{process.pid}, {title}"
        return None

    def _found(self, kind: str) -> list[psutil.Process]:
        """Returns the cluster's processes of a kind other than `node`."""
        processes = self.cluster.processes()
        if kind == "driver":
            return [process for process in processes if _title(process).startswith(DRIVER)]
        actors = self._actors()
        if kind == "actor":
            return [process for process in processes if actors.get(process.pid, SUPERVISOR) != SUPERVISOR]
        return [process for process in processes if process.pid not in actors and _works(_title(process))]

    def _actors(self) -> dict[int, str]:
        """Returns the class of every actor, by process id."""
        from ray.util.state import list_actors

        alive: Any = list_actors(self.cluster.dashboard, filters=[("state", "=", "ALIVE")], limit=1000)
        return {actor.pid: actor.class_name for actor in alive}


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()[:80]
    return ""


def _works(title: str) -> bool:
    """Returns whether a title is that of a task's or an engine's process. (Ray's agents belong to their node.)"""
    return title.startswith(("ray::", "VLLM::")) and "Agent" not in title and not title.startswith("ray::IDLE")


@app.command()
def chaos(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")] = "demo",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a setting. Repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for both runs and their logs.")] = Path("runs/chaos"),
    num_nodes: Annotated[
        int, typer.Option("--nodes", min=2, help="Nodes of two CPUs each, in addition to the head.")
    ] = 3,
    num_kills: Annotated[int, typer.Option("--kills", min=1, help="Number of kills.")] = 10,
    every_seconds: Annotated[float, typer.Option("--every", min=1, help="Seconds between two kills.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice of victims.")] = 0,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest allowed difference of a weight.")] = 0.0,
) -> None:
    """Run a fusion undisturbed and with kills, and compare the results; exit 1 if they differ."""
    placed = {name: [*(settings or ()), f"storage={(output / name).absolute()}"] for name in ("peace", "chaos")}
    runs = {name: FusionRun(load_recipe(recipe, each, RECIPES)) for name, each in placed.items()}
    if runs["chaos"].folder.names():
        raise UserError(f"{runs['chaos'].folder.uri} exists: delete it, or give another --output")
    output.mkdir(parents=True, exist_ok=True)
    shipped = Path(recipe).absolute() if Path(recipe).exists() else recipe
    for name in runs:
        command = [*DRIVER.split(), str(shipped)]
        command += [part for each in placed[name] for part in ("--set", each)]
        start, log = time.monotonic(), output / f"{name}.log"
        with LocalCluster(num_nodes, 2, os.environ) as cluster:
            print_line(f"{name}: {cluster.dashboard}, log: {log}")
            with Monkey(cluster, num_kills if name == "chaos" else 0, every_seconds, seed) as monkey:
                submissions = _submit(cluster, command, log, num_kills + MORE_SUBMISSIONS)
        text = f"{name}: {format_clock(time.monotonic() - start)}, {submissions} submissions, {monkey.num_kills} kills"
        print_line(text)
    found = list(differences(runs["peace"], runs["chaos"]))
    console.print(_table(found))
    if monkey.num_kills < num_kills:
        raise ProfuserError(f"the run ended after {monkey.num_kills} of {num_kills} kills: give it more rows")
    if bad := [each.name for each in found if not _is_same(each, tolerance)]:
        raise ProfuserError(f"results differ: {', '.join(bad)}")
    console.print("the same model")


def _submit(cluster: LocalCluster, command: list[str], log: Path, most: int) -> int:
    """Submits a job until one succeeds; returns the number of submissions."""
    submit = [RAY, "job", "submit", "--address", cluster.dashboard, "--", *command]
    with log.open("a") as stream:
        for number in range(1, most + 1):
            if subprocess.run(submit, stdout=stream, stderr=subprocess.STDOUT).returncode == 0:
                return number
            time.sleep(PAUSE_SECONDS)
    raise ProfuserError(f"{most} jobs failed, including the last one; see {log}")


def _is_same(found: ArtifactDifference, tolerance: float) -> bool:
    """Returns whether no row is missing or different and, for the model, every weight is within the tolerance."""
    exact = not found.num_missing and not found.num_unlike
    return exact and (found.name != "fuse/model" or found.largest <= tolerance)


def _table(found: list[ArtifactDifference]) -> Table:
    table = Table(title="run with kills, compared with the undisturbed run", title_justify="left")
    for heading in ("", "rows", "missing or duplicated", "different", "largest difference"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in found:
        table.add_row(
            each.name, *map("{:,}".format, (each.num_rows, each.num_missing, each.num_unlike)), f"{each.largest:.2g}"
        )
    return table


def main() -> None:
    """Runs the command; its cluster requires a fresh token."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex})
    run_app(app, "chaos")


if __name__ == "__main__":
    main()
