"""Resolves `lab://` paths of a recipe to files of a laboratory."""

from pathlib import Path

LAB_FILE = "lab.json"
"""File with the measurements of the laboratory's models; written last."""
LAB_SCHEME = "lab://"


def assets_path() -> Path:
    """Returns the folder of the laboratory that ships with the package: `sources/`, `rewards/`, `corpus/` and `lab.json`."""
    return Path(__file__).parents[1] / "lab" / "assets"


def resolve(location: str, lab: str | None) -> str:
    """Returns a path with `lab://` replaced by the laboratory's folder (the shipped one, or the recipe's `lab`)."""
    if not location.startswith(LAB_SCHEME):
        return location
    root = Path(lab).expanduser().absolute() if lab else assets_path()
    return str(root / location.removeprefix(LAB_SCHEME))
