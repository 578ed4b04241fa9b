"""Fixes the date of a run when it begins, so that all its prompts show the same one, however long it takes."""

from datetime import date

from profuser.run.finding import RECIPE
from profuser.run.fusion_run import FusionRun
from profuser.run.inputs import BEGAN
from profuser.storage.folder import Folder


def begin(run: FusionRun) -> FusionRun:
    """Writes the run's date unless it has one, and returns the run with it.

    A run that reuses another takes its date, so that their prompts are the same. One that began before dates were kept has none:
    its finished artifacts stay as they are.
    """
    if not run.folder.exists(BEGAN) and not run.folder.exists(RECIPE):
        storage = Folder.at(run.recipe.storage)
        others = [storage / name for name in run.recipe.reuse]
        began = [folder.read_json(BEGAN)["date"] for folder in others if folder.exists(BEGAN)]
        run.folder.write_json(BEGAN, {"date": (began or [date.today().isoformat()])[0]})
    return FusionRun(run.recipe)
