"""Runs a real MLflow server on this machine, with its own PostgreSQL and with artifacts in an object store."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.harness.node_processes import free_port
from tests.object_store import server

PROGRAMS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:] or [os.path.dirname(shutil.which("initdb") or "")]
with_postgres = pytest.mark.skipif(
    not Path(PROGRAMS[0], "initdb").is_file() or find_spec("psycopg") is None,
    reason="PostgreSQL is not installed (Debian: apt-get install postgresql; make setup)",
)
NOBODY = "nobody"


@contextmanager
def postgres():
    """Yields the URI of an empty database, which lives until the body ends."""
    # PostgreSQL refuses to run as root, and other users cannot read root's temporary folders.
    settings = {"user": NOBODY} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        if settings:
            shutil.chown(folder, NOBODY)
        data, programs = f"{folder}/data", Path(PROGRAMS[0])

        def run(program, *arguments):
            subprocess.run([programs / program, *arguments], check=True, capture_output=True, cwd=folder, **settings)

        run("initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        # Uses a socket in its own folder, so that no port can collide.
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run("pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            run("createdb", "-h", folder, "-U", "mlflow", "mlflow")
            yield f"postgresql://mlflow@/mlflow?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@contextmanager
def tracking_server(store, log):
    """Yields the URI of an MLflow server that stores artifacts in a bucket under `mlflow/`, until the body ends."""
    port = free_port()
    with postgres() as database:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", store.uri("mlflow")]
        variables = store.environment | {"MLFLOW_S3_ENDPOINT_URL": store.environment["AWS_ENDPOINT_URL"]}
        variables |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with server(command, lambda: _is_healthy(port), log, **variables):
            yield f"http://127.0.0.1:{port}"


def _is_healthy(port):
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
        return answer.status == 200
    return False
