"""Every overlay against KubeRay's definitions and the operator's rules, and that these checks detect errors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.crd_schema import faults
from tests.cluster.operator_rules import refused
from tests.cluster.rendered import OVERLAYS, RAY_KINDS, Document, cluster_spec, of_kind, render

HOME = {"RayCluster": "interactive", "RayJob": "fusion", "RayService": "serve"}
"""An overlay with a document of each kind."""


def ray_document(kind: str) -> Document:
    (document,) = of_kind(render(HOME[kind]), kind)
    return document


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_document_fits_its_definition_and_the_operators_rules(overlay):
    documents = of_kind(render(overlay), *RAY_KINDS)
    assert len(documents) == 1
    assert documents[0]["apiVersion"] == "ray.io/v1"
    assert faults(documents[0]) == []
    assert refused(documents[0]) == {}


def put(path: str, value: object) -> Callable[[Document], None]:
    """Returns a change that sets the value at a dotted path; `cluster` stands for the cluster's spec."""

    def change(document: Document) -> None:
        node: Any = document
        *keys, last = path.split(".")
        if keys[0] == "cluster":
            node, keys = cluster_spec(document), keys[1:]
        for key in keys:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = copy.deepcopy(value)

    return change


def add_env(name: str, value: str) -> Callable[[Document], None]:
    """Returns a change that adds an environment variable to the head."""

    def change(document: Document) -> None:
        head = cluster_spec(document)["headGroupSpec"]["template"]["spec"]["containers"][0]
        head["env"].append({"name": name, "value": value})

    return change


BAD_FIELDS = [
    ("RayCluster", put("cluster.enableInTreeAutoscalling", True)),
    ("RayCluster", put("cluster.workerGroupSpecs.0.template.spec.nodeSelectors", {})),
    ("RayCluster", put("cluster.workerGroupSpecs.0.template.metadata.label", {})),
    ("RayCluster", put("cluster.workerGroupSpecs.0.maxReplicas", "four")),
    ("RayCluster", put("cluster.workerGroupSpecs.0.template.spec.containers.0.resources.limits.cpu", 1.5)),
    ("RayCluster", put("cluster.autoscalerOptions.version", "v3")),
    ("RayCluster", put("cluster.headGroupSpec.template.spec.containers.0.volumeMounts.0.readonly", True)),
    ("RayCluster", add_env("HOME", "/home")),
    ("RayJob", put("spec.entryPoint", "profuser")),
    ("RayJob", put("spec.backoffLimit", "3")),
    ("RayService", put("spec.serveConfig", "")),
    ("RayService", put("spec.upgradeStrategy.kind", "NewCluster")),
]


@pytest.mark.parametrize(("kind", "change"), BAD_FIELDS)
def test_a_wrong_or_unknown_field_is_refused(kind, change):
    document = ray_document(kind)
    change(document)
    assert len(faults(document)) == 1


def several(*changes: Callable[[Document], None]) -> Callable[[Document], None]:
    """Returns a change that makes all of these changes."""

    def change(document: Document) -> None:
        for each in changes:
            each(document)

    return change


STRATEGY = "spec.deletionStrategy"
AFTER = {"condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}}
BAD_FOR_THE_OPERATOR = [
    ("names", "RayCluster", put("metadata.name", "c" * 54)),
    ("names", "RayJob", put("metadata.name", "f" * 48)),
    ("names", "RayService", put("metadata.name", "2nd")),
    ("containers", "RayCluster", put("cluster.workerGroupSpecs.0.template.spec.containers", [])),
    ("resources_once", "RayCluster", put("cluster.workerGroupSpecs.1.rayStartParams.num-gpus", "1")),
    ("labels", "RayCluster", put("cluster.workerGroupSpecs.0.rayStartParams.labels", "a=b")),
    ("labels", "RayCluster", put("cluster.workerGroupSpecs.1.labels", {"ray.io/zone": "a b"})),
    ("gcs_fault_tolerance", "RayCluster", add_env("RAY_REDIS_ADDRESS", "redis:6379")),
    ("gcs_fault_tolerance", "RayService", add_env("REDIS_PASSWORD", "x")),
    ("gcs_fault_tolerance", "RayService", put("cluster.headGroupSpec.rayStartParams.redis-password", "x")),
    ("gcs_fault_tolerance", "RayService", put("cluster.gcsFaultToleranceOptions.backend", "rocksdb")),
    ("gcs_fault_tolerance", "RayService", put("metadata.annotations", {"ray.io/ft-enabled": "true"})),
    ("autoscaler", "RayCluster", add_env("RAY_enable_autoscaler_v2", "1")),
    ("autoscaler", "RayCluster", put("cluster.headGroupSpec.template.spec.restartPolicy", "Always")),
    ("autoscaler", "RayCluster", put("cluster.workerGroupSpecs.3.template.spec.restartPolicy", "OnFailure")),
    ("autoscaler", "RayCluster", put("cluster.workerGroupSpecs.0.suspend", True)),
    (
        "autoscaler",
        "RayCluster",
        several(put("cluster.enableInTreeAutoscaling", False), add_env("RAY_enable_autoscaler_v2", "1")),
    ),
    ("authentication", "RayCluster", put("cluster.rayVersion", "2.51.0")),
    ("managed", "RayCluster", put("cluster.managedBy", "me")),
    ("managed", "RayService", put("cluster.upgradeStrategy", {"type": "Recreate"})),
    ("job_limits", "RayJob", put("spec.activeDeadlineSeconds", 0)),
    ("job_limits", "RayJob", put("spec.preRunningDeadlineSeconds", 0)),
    ("job_limits", "RayJob", put("spec.backoffLimit", -1)),
    ("job_limits", "RayJob", put("spec.runtimeEnvYAML", "a: [")),
    ("job_clean_up", "RayJob", put("spec.shutdownAfterJobFinishes", False)),
    ("job_clean_up", "RayJob", put(STRATEGY, {"deletionRules": [AFTER | {"policy": "DeleteCluster"}]})),
    ("job_clean_up", "RayJob", put(STRATEGY, {"onSuccess": {"policy": "DeleteCluster"}})),
    (
        "job_clean_up",
        "RayJob",
        several(
            put("spec.shutdownAfterJobFinishes", False),
            put("spec.ttlSecondsAfterFinished", 0),
            put(STRATEGY, {"deletionRules": [AFTER | {"policy": "DeleteWorkers"}]}),
        ),
    ),
    (
        "job_clean_up",
        "RayJob",
        several(
            put("spec.shutdownAfterJobFinishes", False),
            put("spec.ttlSecondsAfterFinished", 0),
            put(
                STRATEGY,
                {
                    "deletionRules": [
                        AFTER | {"policy": "DeleteCluster"},
                        {"condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 5}, "policy": "DeleteSelf"},
                    ]
                },
            ),
        ),
    ),
    ("job_submission", "RayJob", put("spec.clusterSelector", {"ray.io/cluster": "profuser"})),
    ("job_submission", "RayJob", put("spec.submissionMode", "InteractiveMode")),
    ("job_submission", "RayJob", put("spec.submissionMode", "SidecarMode")),
    ("service_upgrade", "RayService", put("spec.upgradeStrategy.type", "Rolling")),
    ("service_upgrade", "RayService", put("spec.upgradeStrategy.type", "NewClusterWithIncrementalUpgrade")),
    ("service_upgrade", "RayService", put("spec.rayClusterDeletionDelaySeconds", -1)),
    ("service_upgrade", "RayService", put("metadata.annotations", {"ray.io/initializing-timeout": "soon"})),
    ("service_upgrade", "RayService", put("cluster.headGroupSpec.headService", {"metadata": {"name": "head"}})),
]


@pytest.mark.parametrize(("rule", "kind", "change"), BAD_FOR_THE_OPERATOR)
def test_every_operator_rule_detects_its_violation(rule, kind, change):
    document = ray_document(kind)
    change(document)
    assert list(refused(document)) == [rule]
