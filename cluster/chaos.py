"""A fusion that is disturbed: every 20 s a node, an actor, a worker or the driver is killed. Does it end with the same model?

`python -m cluster.chaos` starts a cluster on this machine and submits the run to it as a job, once in peace and once in chaos. A
job that fails is submitted again, a node that dies is replaced. Only processes of that cluster are killed; the head stays.
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
from cluster.harness.run_comparison import Difference, differences
from profuser.errors import ProfuserError, UserError
from profuser.recipe import load_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.cli.app import RECIPES, run_app
from ray_jobs.runtime.progress import console, format_clock, print_line

KINDS = ("node", "actor", "worker", "driver")
"""A worker is the process of a task, or of an engine below its actor."""
DRIVER, SUPERVISOR = f"{sys.executable} -m ray_jobs.pipeline.pipeline", "JobSupervisor"
"""How the driver's command begins, and the actor that Ray has for every job."""
MORE_SUBMISSIONS = 20
"""Beyond one for each kill: a job that is submitted while the one before still ends is refused."""
PAUSE_SECONDS = 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Monkey:
    """Kills something of a cluster every so many seconds, in a thread, until it is enough or the `with` ends.

    Args:
        cluster: whose.
        most: how often at most.
        every_seconds: between two kills.
        seed: of what is chosen.
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
        """Kills one of a kind, and says which; None where there is none."""
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
        processes = self.cluster.processes()
        if kind == "driver":
            return [process for process in processes if _title(process).startswith(DRIVER)]
        actors = self._actors()
        if kind == "actor":
            return [process for process in processes if actors.get(process.pid, SUPERVISOR) != SUPERVISOR]
        return [process for process in processes if process.pid not in actors and _works(_title(process))]

    def _actors(self) -> dict[int, str]:
        """Class of every actor by its process."""
        from ray.util.state import list_actors

        alive: Any = list_actors(self.cluster.dashboard, filters=[("state", "=", "ALIVE")], limit=1000)
        return {actor.pid: actor.class_name for actor in alive}


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()[:80]
    return ""


def _works(title: str) -> bool:
    """Whether it is a task's process or an engine's. (Ray's agents are a part of their node.)"""
    return title.startswith(("ray::", "VLLM::")) and "Agent" not in title and not title.startswith("ray::IDLE")


@app.command()
def chaos(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")] = "demo",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a setting. Repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for both runs and their logs.")] = Path("runs/chaos"),
    num_nodes: Annotated[int, typer.Option("--nodes", min=2, help="Of two CPUs each, besides the head.")] = 3,
    num_kills: Annotated[int, typer.Option("--kills", min=1, help="How often something is killed.")] = 10,
    every_seconds: Annotated[float, typer.Option("--every", min=1, help="Seconds between two kills.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of what is killed.")] = 0,
    tolerance: Annotated[float, typer.Option(min=0, help="By which a weight may differ.")] = 0.0,
) -> None:
    """Run a fusion in peace and in chaos, and compare what they have made; exit 1 where it is not the same."""
    placed = {name: [*(settings or ()), f"storage={(output / name).absolute()}"] for name in ("peace", "chaos")}
    runs = {name: FusionRun(load_recipe(recipe, each, RECIPES)) for name, each in placed.items()}
    if runs["chaos"].folder.names():
        raise UserError(f"{runs['chaos'].folder.uri} is there: take it away, or give another --output")
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
        raise ProfuserError(f"not the same: {', '.join(bad)}")
    console.print("the same model")


def _submit(cluster: LocalCluster, command: list[str], log: Path, most: int) -> int:
    """Submits a job until one succeeds; how often that took."""
    submit = [RAY, "job", "submit", "--address", cluster.dashboard, "--", *command]
    with log.open("a") as stream:
        for number in range(1, most + 1):
            if subprocess.run(submit, stdout=stream, stderr=subprocess.STDOUT).returncode == 0:
                return number
            time.sleep(PAUSE_SECONDS)
    raise ProfuserError(f"{most} jobs failed, the last one too; see {log}")


def _is_same(found: Difference, tolerance: float) -> bool:
    exact = not found.num_missing and not found.num_unlike
    return exact and (found.name != "fuse/model" or found.largest <= tolerance)


def _table(found: list[Difference]) -> Table:
    table = Table(title="in chaos against in peace", title_justify="left")
    for heading in ("", "rows", "missing or doubled", "unlike", "largest difference"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in found:
        table.add_row(
            each.name, *map("{:,}".format, (each.num_rows, each.num_missing, each.num_unlike)), f"{each.largest:.2g}"
        )
    return table


def main() -> None:
    """The command; its cluster asks for a token of its own."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex})
    run_app(app, "chaos")


if __name__ == "__main__":
    main()
