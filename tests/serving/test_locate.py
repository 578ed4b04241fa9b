"""Locations of served models: a version in a real registry, a folder, a Hub name."""

import json

import huggingface_hub.constants
import pytest
from mlflow import MlflowClient

from profuser.artifacts.tracking import Tracker
from profuser.errors import UserError
from profuser.models.reference import local_model
from profuser.serving.locate import check_model, registered


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with two versions of a model, from two runs; the alias is on the first."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for name in ("one", "two"):
        model = folder / name / "fuse" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
        tracker = Tracker.open(uri, "profuser", name, {}, str(folder / "artifacts"))
        versions = {tracker.register("fused", str(model)) for _ in range(2)}
        assert len(versions) == 1, "once per run and folder"
    MlflowClient(uri).set_registered_model_alias("fused", "champion", "1")
    return uri, folder


def test_an_alias_and_a_version_lead_to_the_runs_folders(registry):
    uri, folder = registry
    assert registered("models:/fused@champion", uri) == str(folder / "one" / "fuse" / "model")
    assert registered("models:/fused/2", uri) == str(folder / "two" / "fuse" / "model")
    check_model(registered("models:/fused/2", uri))
    MlflowClient(uri).set_registered_model_alias("fused", "champion", "2")
    assert registered("models:/fused@champion", uri).endswith("two/fuse/model")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("models:/fused@nobody", r"not found in the registry at .*: "),
        ("models:/fused/9", r"not found in the registry at .*: "),
        ("models:/fused", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/@champion", "write models:/NAME"),
    ],
)
def test_a_location_missing_from_the_registry_is_refused_in_one_line(registry, location, message):
    with pytest.raises(UserError, match=message) as caught:
        registered(location, registry[0])
    assert "\n" not in str(caught.value)


def test_other_locations_are_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert registered("org/model", "sqlite://") == local_model("org/model") == "org/model"
    assert registered(str(tmp_path), "sqlite://") == str(tmp_path)
    check_model("org/model")
    with pytest.raises(UserError, match=r"is not a model: no config\.json in it"):
        check_model(str(tmp_path))
