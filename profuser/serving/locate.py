"""Resolves the location of a served model: a folder, a URI, a Hub name, or a version in MLflow's registry."""

from profuser.errors import UserError, one_line
from profuser.models.reference import ModelRef

REGISTRY_SCHEME = "models:/"


def registered(location: str, tracking_uri: str) -> str:
    """Returns the folder of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; other locations are unchanged.

    Raises:
        UserError: the registry has no such version, or the location has neither alias nor version.
    """
    if not location.startswith(REGISTRY_SCHEME):
        return location
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, alias, version = _parts(location)
    client = MlflowClient(tracking_uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except MlflowException as error:
        reason = one_line(error, 200)
        raise UserError(f"serve: {location}: not found in the registry at {tracking_uri}: {reason}") from None
    return (found.source or "").removeprefix("file://")


def check_model(location: str) -> None:
    """Raises UserError if a local folder is not a model. The replica checks URIs and Hub names."""
    if "://" not in location:
        ref = ModelRef(location)
        if ref.is_local:
            ref.config("serve")


def _parts(location: str) -> tuple[str, str, str]:
    rest = location.removeprefix(REGISTRY_SCHEME)
    name, at, alias = rest.rpartition("@")
    if at and name and alias:
        return name, alias, ""
    name, slash, version = rest.rpartition("/")
    if not (slash and name and version.isdigit()):
        raise UserError(f"serve: {location}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return name, "", version
