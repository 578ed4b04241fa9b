"""The manifests as `kubectl apply -k` would send them, and what is common to look at in them."""

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
    """An overlay's documents, anew for each caller: tests may change them."""
    return pickle.loads(_rendered(overlay))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def cluster_spec(document: Document) -> Document:
    """The cluster inside a RayCluster, RayJob or RayService."""
    inner = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return document["spec"][inner] if inner else document["spec"]


def groups(document: Document) -> list[Document]:
    """The head and the worker groups of a Ray document."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


@dataclass(frozen=True)
class Pod:
    """A pod template, and where it stands."""

    where: str
    template: Document

    @property
    def spec(self) -> Document:
        """What runs in it."""
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """By which others find it."""
        return self.template["metadata"]["labels"]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """All pods that come of these documents."""
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
    """All containers of a pod."""
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]


def found(pattern: str, text: str) -> str:
    """The first group of a pattern that must be in a text."""
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text[:200]!r}"
    return match[1]
