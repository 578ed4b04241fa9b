"""A Ray cluster on this machine, a tree of processes per node: a head without CPUs, and nodes that can be killed as machines."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from types import TracebackType

import psutil

from profuser.errors import ProfuserError

RAY = str(Path(sys.executable).parent / "ray")
START_SECONDS = 90.0
STARTED = b"Ray runtime started."
"""`ray start` says it once the node is one of the cluster's."""
OBJECT_STORE_BYTES = 200_000_000
"""Of every node; by default Ray would take a third of the machine's memory for each."""


class NodeProcess:
    """A node: `ray start --block`, and all that is below it."""

    def __init__(self, options: list[str], environment: Mapping[str, str]):
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        # Nodes of one machine: each asks the kernel for its ports.
        common += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `kill`)
        self.root = psutil.Popen(
            [RAY, "start", *common, *options],
            env=dict(environment),
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_started(self) -> None:
        """Waits until it has joined the cluster, or made one.

        Raises:
            ProfuserError: it ended, or took longer than `START_SECONDS`; with its last words.
        """
        deadline = time.monotonic() + START_SECONDS
        # Not `read`: the node writes where the file that both share stands.
        while STARTED not in (said := os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size, 0)):
            ended = self.root.poll() is not None
            if ended or time.monotonic() > deadline:
                how = "ended at its start" if ended else f"did not start within {START_SECONDS:.0f} s"
                last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise ProfuserError(f"Ray: a node {how}: {last}")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All of this node that live, itself among them."""
        with suppress(psutil.NoSuchProcess):
            return [self.root, *self.root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Ends all of it on the spot, as if the machine were gone."""
        _kill(self.processes())
        self.root.wait()
        self.output.close()


class LocalCluster:
    """The cluster; within a `with` it runs.

    Args:
        num_nodes: nodes besides the head.
        num_cpus: of each of them; Ray counts with it, whatever this machine has.
        environment: of all nodes.

    Raises:
        ProfuserError: the nodes did not start.
    """

    def __init__(self, num_nodes: int, num_cpus: int, environment: Mapping[str, str]):
        self.num_nodes, self.num_cpus, self.environment = num_nodes, num_cpus, environment
        self.address = f"127.0.0.1:{free_port()}"
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self.nodes: list[NodeProcess] = []
        self._numbers = count(1)

    def __enter__(self) -> "LocalCluster":
        # A short path: sockets lie below it. Of its own: a Ray that is started beside it would not take this one for its.
        self.folder = tempfile.mkdtemp(prefix="ray-")
        ports = [f"--port={self.address.split(':')[1]}", f"--dashboard-port={self.dashboard.split(':')[2]}"]
        ports += [f"--ray-client-server-port={free_port()}"]
        head = ["--head", "--num-cpus=0", f"--temp-dir={self.folder}/0", *ports]
        self.head = NodeProcess(head, self.environment)
        try:
            # A node that comes before the head has registered itself ends at once.
            self._wait_for_head()
            for _ in range(self.num_nodes):
                self.add_node()
            for node in self.nodes:
                node.wait_started()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [*self.nodes, self.head]:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self) -> None:
        """Starts another node, and does not wait for it."""
        options = [f"--address={self.address}", f"--num-cpus={self.num_cpus}"]
        # A folder of its own, as on a machine of its own: in one that they share, nodes that start at the same moment choose the
        # same names for their sockets, and die of it.
        options.append(f"--temp-dir={self.folder}/{next(self._numbers)}")
        self.nodes.append(NodeProcess(options, self.environment))

    def lose_node(self, node: NodeProcess) -> None:
        """Kills a node; another takes its place."""
        self.nodes.remove(node)
        node.kill()
        self.add_node()

    def processes(self) -> list[psutil.Process]:
        """All of all nodes, the head's among them."""
        return [process for node in [self.head, *self.nodes] for process in node.processes()]

    def _wait_for_head(self) -> None:
        self.head.wait_started()
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.dashboard):
            if time.monotonic() > deadline:
                raise ProfuserError(f"Ray: {self.dashboard} did not answer within {START_SECONDS:.0f} s")
            time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=5)
    except urllib.error.HTTPError:
        return True  # it asks for the token
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """As many ports that nobody listens on, each another."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
