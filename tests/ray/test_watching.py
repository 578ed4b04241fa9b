"""A real Prometheus monitors a small run on a Ray cluster: every dashboard query has data, and counts equal the manifests'."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import pytest
import yaml

from cluster.harness.node_processes import free_port, free_ports
from tests.cluster.promql import MONITORING, queries
from tests.ray import stages
from tests.ray.test_run import BIN, BROKEN

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    *(pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"),
]
NUM_STEPS, NUM_BROKEN, NUM_HELDOUT = 12, 2, 4
FUSE = {
    "duration": {"kind": "steps", "value": NUM_STEPS},
    "batch_tokens": 800,
    "max_tokens": 128,
    "checkpoint_every_steps": 6,
    "validation_rows": 6,
    "workers": {"num_workers": 1, "num_cpus": 1},
}


class Prometheus:
    """A server that scrapes the targets of Ray's discovery file every second, with the shipped rules."""

    def __init__(self, folder, discovery):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api/v1"
        config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "ray"]
        config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(discovery)]
        folder.mkdir()
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        shutil.copy(MONITORING / "alerts.yaml", folder)
        options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
        self.process = subprocess.Popen([str(PROMETHEUS), *options, f"--web.listen-address=127.0.0.1:{port}"])

    def get(self, what, **arguments):
        with urllib.request.urlopen(f"{self.url}/{what}?{urllib.parse.urlencode(arguments)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def over(self, query, begin, end):
        """Returns the query's series between two times, as a panel would draw them."""
        return self.get("query_range", query=query, start=begin, end=end, step=1)["result"]

    def at(self, query, *labels):
        """Returns the query's current values, by these labels."""
        found = self.get("query", query=query)["result"]
        return {tuple(each["metric"].get(name, "") for name in labels): float(each["value"][1]) for each in found}

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def environment():
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own


@pytest.fixture(scope="module")
def cluster(environment):
    """Yields the address of a one-node Ray cluster and its file of scrape targets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path, because sockets are created below it
    gcs, *ports = free_ports(5)
    names = ("dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    options += [f"--port={gcs}", f"--temp-dir={folder}", "--num-cpus=4", "--block", "--disable-usage-stats"]
    command = [str(BIN / "ray"), "start", "--head", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    discovery = folder / "prom_metrics_service_discovery.json"
    wait_for(discovery.exists, 60)
    yield f"127.0.0.1:{gcs}", discovery
    process.terminate()
    process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def watched(tmp_path_factory, cluster, environment):
    """Yields a run up to the fused model, in a separate driver, its Prometheus, and the start and end of monitoring."""
    folder = tmp_path_factory.mktemp("watched")
    stages.write_corpus(folder / "corpus.jsonl", 100)
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.writelines(f"{line}\n" for line in BROKEN[:NUM_BROKEN])
    run = stages.make_run(folder / "runs", folder / "corpus.jsonl", kind="vllm", fuse=FUSE)
    prometheus = Prometheus(folder / "prometheus", cluster[1])
    try:
        begin = time.time()
        done = drive(run, folder, cluster, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(3)
        yield run, prometheus, begin, time.time()
    finally:
        prometheus.stop()


@pytest.mark.parametrize("query", queries("Fusion", "Engines", "Training"))
def test_every_dashboard_query_has_data(watched, query):
    _, prometheus, begin, end = watched
    assert prometheus.over(query, begin, end), query


def test_prometheus_counts_equal_the_manifests(watched):
    run, prometheus, *_ = watched
    rows = prometheus.at("sum by (stage, part) (ray_profuser_rows_done_total)", "stage", "part")
    tokens = prometheus.at("sum by (part) (ray_profuser_tokens_read_total)", "part")
    artifacts = [run.corpus(), *(run.artifacts(stage)[0] for stage in ("rewards", "select")), *run.artifacts("collect")]
    counts = {artifact.stage: artifact.manifest().counts for artifact in artifacts}
    assert {"/".join(filter(None, key)): value for key, value in rows.items()} == {
        stage: count["rows"] for stage, count in counts.items()
    }
    for source in run.recipe.sources:
        count = counts[f"collect/{source.name}"]
        assert tokens[(source.name,)] == count["training_tokens"] + count["inference_tokens"] > 0
    quarantined = prometheus.at("sum by (stage) (ray_profuser_rows_quarantined_total)", "stage")
    assert quarantined == {("prepare",): NUM_BROKEN}
    ended = prometheus.at("sum by (stage, state) (ray_profuser_stages_ended_total)", "stage", "state")
    assert ended[("collect", "finished")] == 2
    assert not [key for key in ended if key[1] == "failed"]


def test_prometheus_reports_training(watched):
    run, prometheus, begin, end = watched
    (fuse,) = run.artifacts("fuse")
    history = [json.loads(line) for line in fuse.folder.read_bytes("metrics.jsonl").decode().splitlines()]
    last = {name: value for name, value in history[-1].items() if name.endswith("_nats")}
    losses = prometheus.over("ray_profuser_loss_nats", begin, end)
    drawn = {each["metric"]["loss"]: float(each["values"][-1][1]) for each in losses}
    assert drawn == pytest.approx({name.removesuffix("_nats"): value for name, value in last.items()})
    assert prometheus.at("sum(ray_profuser_steps_total)") == {(): NUM_STEPS}
    assert prometheus.at("sum(ray_profuser_tokens_trained_total)") == {(): fuse.manifest().counts["tokens"]}


def test_a_finished_run_fires_no_alert(watched):
    _, prometheus, *_ = watched
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = [rule["name"] for rule in rules if rule["state"] == "firing" and not rule["name"].startswith("Node")]
    assert firing == []


def test_a_failed_run_fires_its_alert(watched, cluster, environment, tmp_path):
    _, prometheus, *_ = watched
    (tmp_path / "corpus.jsonl").write_text("\n".join(BROKEN) + "\n")
    run = stages.make_run(tmp_path / "runs", tmp_path / "corpus.jsonl", name="broken")
    assert drive(run, tmp_path, cluster, environment).returncode == 2
    alert = 'count by (run, stage) (ALERTS{alertname="FusionStageFailed", alertstate="firing"})'
    wait_for(lambda: prometheus.at(alert, "run", "stage") == {("broken", "prepare"): 1}, 15)


def drive(run, folder, cluster, environment):
    """Runs up to the fused model in a separate driver."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
    command = [str(BIN / "profuser"), "run", str(folder / "recipe.yaml"), "--until", "fuse"]
    at = environment | {"RAY_ADDRESS": cluster[0]}
    return subprocess.run(command, env=at, capture_output=True, text=True, timeout=600)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.2)
