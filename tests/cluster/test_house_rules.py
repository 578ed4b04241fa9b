"""Our own rules for every manifest, stricter than Kubernetes: rights, limits, secrets, and references that resolve."""

import re
import tomllib
from typing import Any

import pytest

from profuser import __version__
from tests.cluster.rendered import (
    KUBERAY,
    OVERLAYS,
    RAY_KINDS,
    ROOT,
    Document,
    cluster_spec,
    containers,
    groups,
    of_kind,
    pods,
    render,
)

OURS = re.compile(r"(?:[\w.-]+/)*profuser:(?P<tag>.+)")
CLUSTER_SCOPED = ("Namespace", "ClusterQueue", "ResourceFlavor", "StorageClass", "PriorityClass")
SECRET_NAME = re.compile("token|password|secret|key|credential", re.IGNORECASE)
KINDS = {
    *RAY_KINDS,
    *("Namespace", "ServiceAccount", "PersistentVolumeClaim", "ConfigMap", "Service", "StatefulSet"),
    *("NetworkPolicy", "PodDisruptionBudget", "ClusterQueue", "LocalQueue", "ResourceFlavor"),
    *("PodMonitor", "PrometheusRule"),
}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def named(documents: list[Document], kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in of_kind(documents, kind)}


@every_overlay
def test_documents_are_of_known_kinds_once_each_and_in_the_namespace(overlay):
    documents = render(overlay)
    assert {document["kind"] for document in documents} <= KINDS
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))
    for document in documents:
        assert document["apiVersion"]
        where = document["metadata"].get("namespace")
        assert where == (None if document["kind"] in CLUSTER_SCOPED else "profuser"), document["metadata"]


@every_overlay
def test_pods_run_unprivileged_on_a_read_only_root(overlay):
    documents = render(overlay)
    (ray,) = of_kind(documents, *RAY_KINDS)
    autoscaler = cluster_spec(ray).get("autoscalerOptions")
    contexts = [(pod.where, container["securityContext"]) for pod in pods(documents) for container in containers(pod)]
    contexts += [("autoscaler", autoscaler["securityContext"])] if autoscaler else []
    for where, context in contexts:
        assert context["readOnlyRootFilesystem"], where
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["runAsNonRoot"], where
        assert context["capabilities"] == {"drop": ["ALL"]}, where
    for pod in pods(documents):
        assert pod.spec["securityContext"]["runAsNonRoot"], pod.where
        assert pod.spec["securityContext"]["runAsUser"] > 0, pod.where
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.where


@every_overlay
def test_ray_can_write_its_folders(overlay):
    documents = render(overlay)
    for pod in pods(documents):
        scratch = {volume["name"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume}
        for container in containers(pod):
            if not OURS.fullmatch(container["image"]):
                continue
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in scratch}
            assert "/tmp" in writable, pod.where
            assert {"name": "HOME", "value": "/tmp"} in container["env"], pod.where
    (ray,) = of_kind(documents, *RAY_KINDS)
    if "autoscalerOptions" in cluster_spec(ray):
        assert {"name": "tmp", "mountPath": "/tmp"} in cluster_spec(ray)["autoscalerOptions"]["volumeMounts"]


@every_overlay
def test_every_container_has_limits_and_every_group_has_memory(overlay):
    documents = render(overlay)
    for pod in pods(documents):
        for container in containers(pod):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, pod.where
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, pod.where
            gpus = {kind: container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
            assert gpus["requests"] == gpus["limits"], pod.where
    (ray,) = of_kind(documents, *RAY_KINDS)
    names = [group["groupName"] for group in groups(ray)[1:]]
    assert len(names) == len(set(names))
    for group in groups(ray)[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        if cluster_spec(ray)["enableInTreeAutoscaling"] and group["groupName"] != "serve":
            assert group["minReplicas"] == 0


@every_overlay
def test_one_image_of_this_version_and_for_this_hardware(overlay):
    documents = render(overlay)
    images = {container["image"] for pod in pods(documents) for container in containers(pod)}
    tags = {match["tag"] for image in images if (match := OURS.fullmatch(image))}
    on_gpus = any("nvidia.com/gpu" in c["resources"]["limits"] for pod in pods(documents) for c in containers(pod))
    assert tags == {f"{__version__}-{'gpu' if on_gpus else 'cpu'}"}
    assert all(re.search(r":\d[\w.-]+$", image) for image in images), "expected a version, not latest"


@every_overlay
def test_ray_is_the_pinned_one(overlay):
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = [match[1] for item in pinned if (match := re.fullmatch(r"ray\[.*\]==(.+)", item))]
    (ray,) = of_kind(render(overlay), *RAY_KINDS)
    assert cluster_spec(ray)["rayVersion"] == version
    assert cluster_spec(ray)["authOptions"] == {"mode": "token"}


def literal_secrets(node: Any) -> list[str]:
    """Returns the variables with a secret's name and a plain-text value anywhere in a document."""
    if isinstance(node, dict):
        own = [node["name"]] if isinstance(node.get("value"), str) and SECRET_NAME.search(str(node.get("name"))) else []
        return own + [name for value in node.values() for name in literal_secrets(value)]
    return [name for item in node for name in literal_secrets(item)] if isinstance(node, list) else []


def secret_names(node: Any) -> set[str]:
    """Returns the names of the Secrets that documents read."""
    if isinstance(node, dict):
        own = {node[key]["name"] for key in ("secretRef", "secretKeyRef") if key in node}
        return own.union(*map(secret_names, node.values()))
    return set().union(*map(secret_names, node)) if isinstance(node, list) else set()


@every_overlay
def test_no_secret_is_in_plain_text_and_the_readme_creates_each(overlay):
    documents = render(overlay)
    assert literal_secrets(documents) == []
    readme = (KUBERAY / "README.md").read_text()
    for name in secret_names(documents):
        assert f"create secret generic {name}" in readme, name


def test_a_plain_text_secret_is_detected():
    assert literal_secrets([{"env": [{"name": "HF_TOKEN", "value": "hf_x"}]}]) == ["HF_TOKEN"]


@every_overlay
def test_only_the_head_has_an_api_server_token(overlay):
    documents = render(overlay)
    accounts = {account["metadata"]["name"]: account for account in of_kind(documents, "ServiceAccount")}
    for pod in pods(documents):
        account = accounts[pod.spec["serviceAccountName"]]
        is_head = pod.labels["app.kubernetes.io/component"] == "head"
        assert pod.spec.get("automountServiceAccountToken", account["automountServiceAccountToken"]) == is_head, (
            pod.where
        )


@every_overlay
def test_volumes_and_claims_exist(overlay):
    documents = render(overlay)
    for pod in pods(documents):
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        claims = {
            claim["metadata"]["name"]
            for document in of_kind(documents, "StatefulSet")
            for claim in document["spec"]["volumeClaimTemplates"]
        }
        assert mounted <= volumes.keys() | claims, pod.where
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in named(documents, "PersistentVolumeClaim")
            if "configMap" in volume:
                assert volume["configMap"]["name"] in named(documents, "ConfigMap")


def selectors(documents: list[Document]) -> list[tuple[str, dict[str, str]]]:
    """Returns the pod selectors of documents, within their namespace, each with its location."""
    found = []
    for document in documents:
        name, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "NetworkPolicy":
            found.append((name, spec["podSelector"].get("matchLabels", {})))
            peers = [
                peer
                for way, end in (("ingress", "from"), ("egress", "to"))
                for rule in spec.get(way, [])
                for peer in rule.get(end, [])
            ]
            found += [(name, peer["podSelector"]["matchLabels"]) for peer in peers if peer.keys() == {"podSelector"}]
        if document["kind"] in ("PodDisruptionBudget", "StatefulSet"):
            found.append((name, spec["selector"]["matchLabels"]))
        if document["kind"] == "Service":
            found.append((name, spec["selector"]))
    return found


@every_overlay
def test_every_selector_finds_a_pod_and_policies_cover_every_pod(overlay):
    documents = render(overlay)
    labels = [pod.labels.items() for pod in pods(documents)]
    for where, selector in selectors(documents):
        assert selector, where
        assert any(selector.items() <= those for those in labels), where
    (deny,) = [d for d in of_kind(documents, "NetworkPolicy") if not {"ingress", "egress"} & d["spec"].keys()]
    assert set(deny["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert all(deny["spec"]["podSelector"]["matchLabels"].items() <= those for those in labels)


@every_overlay
def test_disruption_budgets_are_valid_for_pods_of_a_custom_resource(overlay):
    budgets = of_kind(render(overlay), "PodDisruptionBudget")
    assert {budget["metadata"]["name"] for budget in budgets} >= {"profuser-head"}
    for budget in budgets:
        assert isinstance(budget["spec"]["minAvailable"], int)
        assert "maxUnavailable" not in budget["spec"]
