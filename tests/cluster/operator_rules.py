"""Rules of KubeRay 1.7 beyond the schema, from its validation.go and the CRDs' own expressions, one function per rule.

A rule gets a RayCluster, RayJob or RayService that fits the schema, and yields the operator's objections.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tests.cluster.rendered import Document, cluster_spec, groups

MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+|\d+")
Faults = Iterator[str]


def _name(group: Document) -> str:
    return group.get("groupName", "head")


def _head_env(spec: Document) -> dict[str, Any]:
    return {item["name"]: item for item in spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])}


def names(document: Document) -> Faults:
    """Requires a name from which Services of at most 63 characters can be derived."""
    name = document["metadata"]["name"]
    if len(name) > MAX_NAME[document["kind"]] or not DNS_LABEL.fullmatch(name):
        yield f"{name}: at most {MAX_NAME[document['kind']]} characters, a DNS label that begins with a letter"


def resources_once(document: Document) -> Faults:
    """Requires resources in either `resources` or `rayStartParams`."""
    for group in groups(document):
        declared = {"num-cpus", "num-gpus", "memory", "resources"} & group.get("rayStartParams", {}).keys()
        if declared and group.get("resources"):
            yield f"{_name(group)}: both resources and rayStartParams {sorted(declared)}"


def labels(document: Document) -> Faults:
    """Requires Ray's labels in `labels`, in Kubernetes' syntax."""
    for group in groups(document):
        if "labels" in group.get("rayStartParams", {}):
            yield f"{_name(group)}: rayStartParams.labels"
        for key, value in group.get("labels", {}).items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
                yield f"{_name(group)}: label {key}={value}"


def containers(document: Document) -> Faults:
    """Requires at least one container in every group."""
    for group in groups(document):
        if not group["template"]["spec"]["containers"]:
            yield f"{_name(group)}: no container"


def gcs_fault_tolerance(document: Document) -> Faults:
    """Requires Redis to be named only in `gcsFaultToleranceOptions`."""
    spec, notes = cluster_spec(document), document["metadata"].get("annotations", {})
    options = spec.get("gcsFaultToleranceOptions")
    start, env = spec["headGroupSpec"].get("rayStartParams", {}), _head_env(spec)
    if options is None and notes.get("ray.io/ft-enabled") != "true" and "RAY_REDIS_ADDRESS" in env:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if options is not None:
        if "ray.io/ft-enabled" in notes or "ray.io/external-storage-namespace" in notes:
            yield "an annotation beside gcsFaultToleranceOptions"
        if "redis-password" in start or {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & env.keys():
            yield "Redis outside of gcsFaultToleranceOptions"
        if options.get("backend") == "rocksdb":
            yield "backend rocksdb needs a feature gate that is off"
    if "redis-username" in start or "REDIS_USERNAME" in env:
        yield "the user's name outside of gcsFaultToleranceOptions"


def autoscaler(document: Document) -> Faults:
    """Requires no pod restarts under version 2, the version declared once, and no suspended group that scales."""
    spec = cluster_spec(document)
    switch = _head_env(spec).get("RAY_enable_autoscaler_v2", {}).get("value")
    if not spec.get("enableInTreeAutoscaling"):
        if switch in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling"
        return
    version = spec.get("autoscalerOptions", {}).get("version")
    if version and switch is not None:
        yield "both autoscalerOptions.version and RAY_enable_autoscaler_v2"
    for group in groups(document):
        if group.get("suspend"):
            yield f"{_name(group)}: suspended with autoscaling"
        if version != "v1" and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{_name(group)}: restartPolicy is not Never"


def authentication(document: Document) -> Faults:
    """Requires a Ray version that supports tokens."""
    spec = cluster_spec(document)
    if spec.get("authOptions", {}).get("mode") == "token":
        numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if not numbers or tuple(map(int, numbers.groups())) < (2, 52, 0):
            yield f"token with rayVersion {spec.get('rayVersion')!r}; 2.52.0 or later"


def managed(document: Document) -> Faults:
    """Requires a known manager, and no upgrade strategy in children."""
    for spec in (document["spec"], cluster_spec(document)):
        if spec.get("managedBy", "ray.io/kuberay-operator") not in (
            "ray.io/kuberay-operator",
            "kueue.x-k8s.io/multikueue",
        ):
            yield f"managedBy {spec['managedBy']}"
    if document["kind"] != "RayCluster" and "upgradeStrategy" in cluster_spec(document):
        yield "upgradeStrategy of the child"


def job_limits(document: Document) -> Faults:
    """Requires deadlines above zero, non-negative retries, and an environment in YAML."""
    spec = document["spec"]
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be positive"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "backoffLimit and ttlSecondsAfterFinished must not be negative"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"


def job_clean_up(document: Document) -> Faults:
    """Requires one way of cleaning up, in a possible order."""
    spec = document["spec"]
    shutdown, strategy = spec.get("shutdownAfterJobFinishes", False), spec.get("deletionStrategy")
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if strategy is None:
        return
    rules, legacy = strategy.get("deletionRules", []), {"onSuccess", "onFailure"} & strategy.keys()
    if bool(rules) == bool(legacy) or (legacy and len(legacy) < 2):
        yield "deletionStrategy needs either rules, or both onSuccess and onFailure"
    if rules and shutdown:
        yield "deletionRules with shutdownAfterJobFinishes"
    scaling = cluster_spec(document).get("enableInTreeAutoscaling")
    times: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        if len({"jobStatus", "jobDeploymentStatus"} & condition.keys()) != 1:
            yield "a rule has jobStatus or jobDeploymentStatus"
        if policy == "DeleteWorkers" and scaling:
            yield "DeleteWorkers with autoscaling"
        state = times.setdefault(condition.get("jobStatus") or condition.get("jobDeploymentStatus", ""), {})
        if policy in state or condition.get("ttlSeconds", 0) < 0:
            yield f"{policy} is there twice, or before its time"
        state[policy] = condition.get("ttlSeconds", 0)
    for state in times.values():
        ordered = [state[policy] for policy in DELETION_ORDER if policy in state]
        if ordered != sorted(ordered):
            yield f"ttlSeconds must not fall along {DELETION_ORDER}"


def job_submission(document: Document) -> Faults:
    """Refuses fields that conflict with the way of submitting."""
    spec, mode = document["spec"], document["spec"].get("submissionMode", "K8sJobMode")
    if "clusterSelector" in spec and (spec.get("suspend") or spec.get("backoffLimit", 0) > 0 or mode == "SidecarMode"):
        yield "clusterSelector with suspend, backoffLimit or SidecarMode"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode with backoffLimit"
    if mode == "SidecarMode":
        head = cluster_spec(document)["headGroupSpec"]["template"]["spec"]
        if {"submitterPodTemplate", "submitterConfig"} & spec.keys() or head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode with a submitter, or a head that restarts"


def service_upgrade(document: Document) -> Faults:
    """Requires a known upgrade strategy with its options."""
    spec = document["spec"]
    kind = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if kind not in UPGRADES:
        yield f"upgradeStrategy.type {kind}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    if "name" in cluster_spec(document)["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headService.metadata.name"
    timeout = document["metadata"].get("annotations", {}).get("ray.io/initializing-timeout", "1s")
    if not DURATION.fullmatch(timeout) or not re.search("[1-9]", timeout):
        yield f"ray.io/initializing-timeout {timeout!r}"
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    options = spec["upgradeStrategy"].get("clusterUpgradeOptions", {})
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not cluster_spec(document).get("enableInTreeAutoscaling") or not options.get("gatewayClassName"):
        yield "an incremental upgrade needs autoscaling and a gatewayClassName"
    if not 0 <= step <= surge <= 100 or options.get("intervalSeconds", 0) <= 0:
        yield "0 <= stepSizePercent <= maxSurgePercent <= 100, and a positive intervalSeconds"


COMMON = (names, containers, resources_once, labels, gcs_fault_tolerance, autoscaler, authentication, managed)
RULES: dict[str, tuple[Callable[[Document], Faults], ...]] = {
    "RayCluster": COMMON,
    "RayJob": (*COMMON, job_limits, job_clean_up, job_submission),
    "RayService": (*COMMON, service_upgrade),
}


def refused(document: Document) -> dict[str, list[str]]:
    """Returns the violations in a document by rule name, without rules that have none."""
    found = {rule.__name__: list(rule(document)) for rule in RULES[document["kind"]]}
    return {name: faults for name, faults in found.items() if faults}
