"""The laboratory: a tiny world of six skills, in which fusion can be seen on two CPU cores. Light: no torch here."""

from pathlib import Path

LAB_FILE = "lab.json"
"""Written last; holds what was measured of the laboratory's models."""


def assets_path() -> Path:
    """Folder of the laboratory that ships with the package: `sources/`, `rewards/`, `corpus/` and `lab.json`."""
    return Path(__file__).parent / "assets"
