"""Prints what pyproject.toml asks for, one requirement a line: an image layer that changes only when these do.

Usage: python requirements.py pyproject.toml gpu|cpu
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extra: str) -> list[str]:
    """The project's dependencies and those of one extra.

    Raises:
        SystemExit: there is no such extra.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise SystemExit(f"{pyproject}: no extra {extra!r}; there are: {', '.join(extras)}")
    return [*project["dependencies"], *extras[extra]]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2])))
