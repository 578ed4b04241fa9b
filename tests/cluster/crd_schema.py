"""Validates like the API server with a custom resource definition, but refuses unknown fields instead of dropping them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from tests.cluster.rendered import ROOT

CRDS = ROOT.parent / "shared" / "crds"
FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def strict(schema: Any, top: bool = True) -> Any:
    """Converts a CRD's schema to JSON schema; an object may have only the fields that it lists.

    Only the document's own `metadata` stays open: its schema is Kubernetes' and not in the CRD.
    """
    if isinstance(schema, list):
        return [strict(item, False) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out = {key: strict(value, False) for key, value in schema.items() if key not in ("properties", "default")}
    if "properties" in schema:
        out["properties"] = {
            name: value if top and name == "metadata" else strict(value, False)
            for name, value in schema["properties"].items()
        }
    closed = not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema
    if schema.get("type") == "object" and closed:
        out["additionalProperties"] = False
    if schema.get("nullable"):
        out["type"] = [schema["type"], "null"]
    return out


def _one_of_each_key(validator: Any, keys: list[str], items: Any, schema: Any):
    """Validates `x-kubernetes-list-map-keys`: no two items of a list share their key."""
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    for key in {key for key in seen if seen.count(key) > 1}:
        yield ValidationError(f"{key} is there twice")


Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _one_of_each_key})


@cache
def validator(kind: str) -> Any:
    """Returns the strict validator of a kind of `ray.io/v1`; skips the test if the definitions are missing."""
    file = CRDS / f"ray.io_{FILES[kind]}.yaml"
    if not Path(file).is_file():
        pytest.skip(f"{file} is not there")
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return Validator(strict(version["schema"]["openAPIV3Schema"]))


def faults(document: dict[str, Any]) -> list[str]:
    """Returns the schema's errors in a document, each with its path."""
    return [f"{error.json_path}: {error.message[:300]}" for error in validator(document["kind"]).iter_errors(document)]
