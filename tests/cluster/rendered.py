"""Renders the manifests as `kubectl apply -k` would send them, and finds common parts in them."""

import pickle
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
OVERLAYS = tuple(sorted(folder.name for folder in (KUBERAY / "overlays").iterdir()))
RAY_KINDS = ("RayCluster", "RayJob", "RayService")


@cache
def _rendered(overlay: str) -> bytes:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return pickle.dumps(list(yaml.load_all(done.stdout, yaml.CSafeLoader)))


def render(overlay: str) -> list[Document]:
    """Returns an overlay's documents, a fresh copy for each caller: tests may change them."""
    return pickle.loads(_rendered(overlay))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """Returns the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def cluster_spec(document: Document) -> Document:
    """Returns the cluster spec inside a RayCluster, RayJob or RayService."""
    inner = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return document["spec"][inner] if inner else document["spec"]


def groups(document: Document) -> list[Document]:
    """Returns the head and worker groups of a Ray document."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


@dataclass(frozen=True)
class Pod:
    """A pod template and its location in the documents."""

    where: str
    template: Document

    @property
    def spec(self) -> Document:
        """The pod's spec."""
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels."""
        return self.template["metadata"]["labels"]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Yields all pods that these documents create."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] in RAY_KINDS:
            for group in groups(document):
                yield Pod(f"{name}: {group.get('groupName', 'head')}", group["template"])
        if document["kind"] == "RayJob" and "submitterPodTemplate" in document["spec"]:
            yield Pod(f"{name}: submitter", document["spec"]["submitterPodTemplate"])
        if document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield Pod(name, document["spec"]["template"])


def containers(pod: Pod) -> list[Document]:
    """Returns all containers of a pod."""
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]


def found(pattern: str, text: str) -> str:
    """Returns the first group of a pattern that must match in a text."""
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text[:200]!r}"
    return match[1]
