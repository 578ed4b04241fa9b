"""Finds existing runs, by name in a storage or by folder."""

import yaml

from profuser.artifacts.artifact import read_manifest
from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.run.fusing_artifacts import MODEL
from profuser.run.fusion_run import FusionRun
from profuser.storage.folder import Folder

RECIPE = "recipe.yaml"
"""File in a run's folder with the recipe that it was started with."""


def find_run(name: str, storage: str) -> FusionRun:
    """Returns an existing run, found by name in a storage or by its folder, with the recipe that it was started with.

    Raises:
        UserError: no such run exists.
    """
    # No retries: a mistyped storage fails at once.
    for folder in (Folder.at(storage).without_retry() / name, Folder.at(name).without_retry()):
        if folder.exists(RECIPE):
            recipe = parse_recipe(yaml.safe_load(folder.read_bytes(RECIPE)), folder.path(RECIPE))
            parent = folder.uri.rpartition("/")[0]
            return FusionRun(recipe.model_copy(update={"storage": parent}))
    known = [
        entry for entry in Folder.at(storage).without_retry().names() if (Folder.at(storage) / entry).exists(RECIPE)
    ]
    found = f"there are: {', '.join(known)}" if known else f"no runs in {Folder.at(storage).uri}"
    raise UserError(f"run {name!r} not found; {found} (see --storage)")


def finished_model(run: FusionRun) -> str:
    """Returns the folder or URI of a run's fused model; raises UserError if `fuse` has not finished."""
    if read_manifest(run.folder / "fuse") is None:
        raise UserError(f"run {run.recipe.name!r} has no fused model yet; finish it with profuser run")
    return (run.folder / "fuse" / MODEL).uri
