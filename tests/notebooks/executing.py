"""Runs a notebook in a separate kernel and reads its outputs."""

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHOWN = ("text/plain", "text/html", "text/markdown")


def read(name: str) -> Any:
    """Reads a committed notebook."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def execute(name: str, **environment: str) -> Any:
    """Runs a notebook without saving it and returns it with the new outputs; a failing cell raises."""
    notebook = read(name)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env=os.environ | environment)
    return notebook


def outputs(notebook: Any) -> list[Any]:
    """Returns the outputs of all cells, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def words(notebook: Any) -> str:
    """Returns the text of all outputs."""
    parts = []
    for output in outputs(notebook):
        parts.append(output.get("text", ""))
        parts += [output.get("data", {}).get(kind, "") for kind in SHOWN]
    return "\n".join(parts)


def num_pictures(notebook: Any) -> int:
    """Counts the pictures in the outputs."""
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))
