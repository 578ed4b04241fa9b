"""Starts a Ray cluster on this machine, one process tree per node: a head without CPUs, and nodes that can be killed."""

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
"""Line that `ray start` prints once the node has joined the cluster."""
OBJECT_STORE_BYTES = 200_000_000
"""Object store of every node; by default Ray would reserve a third of the machine's memory for each."""


class NodeProcess:
    """A node: `ray start --block` and its child processes."""

    def __init__(self, options: list[str], environment: Mapping[str, str]):
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        # All nodes share a machine: each gets its ports from the kernel.
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
        """Waits until the node has joined or created the cluster.

        Raises:
            ProfuserError: it exited, or took longer than `START_SECONDS`; the message has its last output line.
        """
        deadline = time.monotonic() + START_SECONDS
        # Not `read`: that would move the file position, which the node shares.
        while STARTED not in (output := os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size, 0)):
            ended = self.root.poll() is not None
            if ended or time.monotonic() > deadline:
                how = "ended at its start" if ended else f"did not start within {START_SECONDS:.0f} s"
                last = (output.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise ProfuserError(f"Ray: a node {how}: {last}")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Returns the node's live processes, including the root."""
        with suppress(psutil.NoSuchProcess):
            return [self.root, *self.root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kills all of its processes at once, as if the machine were lost."""
        _kill(self.processes())
        self.root.wait()
        self.output.close()


class LocalCluster:
    """A cluster that runs within a `with`.

    Args:
        num_nodes: nodes in addition to the head.
        num_cpus: CPUs that Ray assumes per node, whatever this machine has.
        environment: environment variables of all nodes.

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
        # Short, because sockets are created below it. Separate, so that another Ray on this machine does not use this cluster.
        self.folder = tempfile.mkdtemp(prefix="ray-")
        ports = [f"--port={self.address.split(':')[1]}", f"--dashboard-port={self.dashboard.split(':')[2]}"]
        ports += [f"--ray-client-server-port={free_port()}"]
        head = ["--head", "--num-cpus=0", f"--temp-dir={self.folder}/0", *ports]
        self.head = NodeProcess(head, self.environment)
        try:
            # A node that starts before the head has registered itself exits at once.
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
        """Starts another node without waiting for it."""
        options = [f"--address={self.address}", f"--num-cpus={self.num_cpus}"]
        # A separate folder, as on a separate machine: in a shared one, nodes that start at the same moment choose the
        # same socket names, and crash.
        options.append(f"--temp-dir={self.folder}/{next(self._numbers)}")
        self.nodes.append(NodeProcess(options, self.environment))

    def lose_node(self, node: NodeProcess) -> None:
        """Kills a node and starts a replacement."""
        self.nodes.remove(node)
        node.kill()
        self.add_node()

    def processes(self) -> list[psutil.Process]:
        """Returns the processes of all nodes, including the head."""
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
        return True  # the server is up and requires the token
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Returns `count` different ports on which nothing listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """Returns a port on which nothing listens."""
    return free_ports(1)[0]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
