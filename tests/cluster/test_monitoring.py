"""Alerts and dashboard: they query existing metrics, promtool accepts them, and Kubernetes gets the same ones."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from ray.util.metrics import Counter, Histogram, Metric

import ray_jobs.runtime.stage_metrics
from profuser.serving.gateway_metrics import GatewayMetrics
from tests.cluster.promql import ALERTS, DASHBOARD, MONITORING, PANELS, RULES, names, queries
from tests.cluster.rendered import RAY_KINDS, ROOT, groups, of_kind, pods, render

PROMTOOL = shutil.which("promtool")
OVERLAY = "fusion-monitoring"
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}

with_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def exported(name: str, kind: str) -> set[str]:
    """Returns the names under which Prometheus sees a metric of a kind."""
    return {name.removesuffix(part) + part for part in PARTS[kind]}


def ours() -> set[str]:
    """Returns the metrics of the stages."""
    found: set[str] = set()
    values = [*vars(ray_jobs.runtime.stage_metrics).values(), *ray_jobs.runtime.stage_metrics.OF_AN_UPDATE.values()]
    for metric in (value for value in values if isinstance(value, Metric)):
        found |= exported(f"ray_{metric.info['name']}", "counter" if isinstance(metric, Counter) else "gauge")
    return found


def of_the_gateway() -> set[str]:
    """Returns the metrics that the gateway exports at `/metrics`."""
    found = [exported(metric.name, metric.type) for metric in GatewayMetrics().registry.collect()]
    return set().union(*found)


def sources(package: str, folder: str) -> str:
    """Returns all Python source of a folder of an installed package."""
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return "\n".join(file.read_text() for file in sorted((Path(spec.origin).parent / folder).rglob("*.py")))


def of_vllm() -> set[str]:
    """Returns the metrics that vLLM's engines export through Ray, which accepts no colon."""
    text = sources("vllm", "v1/metrics")
    found = re.findall(r'_(counter|gauge|histogram)_cls\(\s*name="vllm:(\w+)"', text)
    return set().union(*(exported(f"ray_vllm_{name}", kind) for kind, name in found))


def of_ray() -> set[str]:
    """Returns Ray's metrics of Serve's requests and replicas, of its nodes, and (in C++) of its object store."""
    serve = sources("ray", "serve/_private").replace("{protocol_name}", "http")
    found = re.findall(r'(Counter|Gauge|Histogram)\(\s*(?:name=)?f?"(serve_\w+)"', serve)
    found += [("Gauge", name) for name in re.findall(r'"(\w+)": Gauge\(', sources("ray", "dashboard/modules/reporter"))]
    raylet = Path(str(find_spec("ray").origin)).parent / "core" / "src" / "ray" / "raylet" / "raylet"  # type: ignore[union-attr]
    found += [("Gauge", name) for name in ("object_store_memory",) if name.encode() in raylet.read_bytes()]
    return set().union(*(exported(f"ray_{name}", kind.lower()) for kind, name in found))


@pytest.mark.parametrize("expression", [*(alert["expr"] for alert in ALERTS), *queries()])
def test_every_query_reads_exported_metrics(expression):
    assert names(expression)
    assert names(expression) <= ours() | of_the_gateway() | of_vllm() | of_ray()


def test_an_unknown_metric_is_detected():
    assert names('sum by (up) (rate(ray_x_total{a="b", c=~"d"}[5m] offset 1m)) / 2 or vector(0)') == {"ray_x_total"}
    assert not {"ray_profuser_rows_done", "ray_vllm_nothing", "ray_serve_none"} & (ours() | of_vllm() | of_ray())


def test_every_stage_metric_is_queried():
    asked = set().union(*map(names, [*(alert["expr"] for alert in ALERTS), *queries()]))
    assert ours() <= asked


def test_our_names_follow_prometheus_conventions():
    metrics = [value for value in vars(ray_jobs.runtime.stage_metrics).values() if isinstance(value, Metric)]
    assert not any(isinstance(metric, Histogram) for metric in metrics)
    for metric in (*metrics, *ray_jobs.runtime.stage_metrics.OF_AN_UPDATE.values()):
        name = metric.info["name"]
        assert name.startswith("profuser_")
        assert name.endswith("_total") == isinstance(metric, Counter), name
        assert metric.info["description"].endswith("."), name
        assert set(metric.info["tag_keys"]) >= {"run", "stage", "part"}, name


def test_every_alert_has_a_summary_a_description_and_an_action():
    titles = [alert["alert"] for alert in ALERTS]
    assert len(titles) == len(set(titles))
    for alert in ALERTS:
        assert alert["annotations"].keys() == {"summary", "description", "action"}, alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical"), alert["alert"]


@with_promtool
def test_promtool_accepts_the_rules_and_the_configuration(tmp_path):
    for file in ("prometheus.yaml", "alerts.yaml"):
        shutil.copy(MONITORING / file, tmp_path)
    (tmp_path / "api-key").write_text("sk-of-the-api")
    for command in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run([str(PROMTOOL), *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stdout + done.stderr


@with_promtool
def test_the_alerts_fire_only_when_they_should():
    file = ROOT / "tests" / "cluster" / "alerts_test.yaml"
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    text = file.read_text()
    assert all(alert["alert"] in text for alert in ALERTS)


@with_promtool
def test_the_dashboards_queries_are_promql(tmp_path):
    rules = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    command = [str(PROMTOOL), "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_panels_do_not_overlap_and_each_has_a_unit_and_a_datasource():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        aside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert aside or below, (one, other)
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in DASHBOARD["panels"]) == 24


def test_the_dashboard_can_be_imported_into_any_grafana():
    assert DASHBOARD.get("id") is None
    assert DASHBOARD["uid"] == "profuser"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= variables.keys() | {"__rate_interval"}


def test_kubernetes_gets_the_same_alerts_and_the_same_dashboard():
    documents = render(OVERLAY)
    (rule,) = of_kind(documents, "PrometheusRule")
    assert rule["spec"] == RULES, (
        "copy alerts.yaml into components/monitoring/rules.yaml, as described in its first line"
    )
    (board,) = [each for each in of_kind(documents, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert [json.loads(text) for text in board["data"].values()] == [DASHBOARD]


def test_prometheus_finds_and_may_reach_every_node():
    documents = render(OVERLAY)
    (monitor,) = of_kind(documents, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (ray,) = of_kind(documents, *RAY_KINDS)
    # KubeRay adds the port `metrics`, 8080, to every head and worker that does not name one.
    assert endpoint["port"] == "metrics"
    for group in groups(ray):
        assert "metrics-export-port" not in group["rayStartParams"]
        ports = [port for container in group["template"]["spec"]["containers"] for port in container.get("ports", [])]
        assert all(port["name"] != "metrics" and port["containerPort"] != 8080 for port in ports)
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert all(wanted <= pod.labels.items() for pod in pods(documents) if "submitter" not in pod.where)
    policies = [policy["spec"] for policy in of_kind(documents, "NetworkPolicy")]
    (opened,) = [
        rule
        for policy in policies
        for rule in policy.get("ingress", [])
        if {"protocol": "TCP", "port": 8080} in rule.get("ports", [])
    ]
    (peer,) = opened["from"]
    assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
