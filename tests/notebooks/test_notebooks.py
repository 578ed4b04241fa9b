"""The notebooks run in a fresh kernel and show the expected results; committed, they reveal nothing about a machine."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.notebooks.executing import NOTEBOOKS, execute, num_pictures, outputs, read, words

NAMES = sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb"))
RESULTS = NOTEBOOKS / "results" / "ablation"
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|opt|mnt|srv|var|private|Users)/|[A-Z]:\\\\?Users")
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try)


@pytest.mark.parametrize("name", NAMES)
def test_every_import_of_a_notebook_resolves(name):
    """Seconds instead of the minutes in which the notebook's own test would notice a name that has moved."""
    cells = ["".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    trees = [ast.parse(re.sub(r"^[%!].*$", "", text, flags=re.MULTILINE)) for text in cells]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module and node.module.split(".")[0] in ("profuser", "ray_jobs", "tests")]
    assert own
    for node in own:
        module = import_module(node.module)
        missing = [each.name for each in node.names if not hasattr(module, each.name)]
        assert not missing, f"{name}: {node.module} has no {missing}"


@pytest.mark.slow
def test_the_alignment_notebook_shows_all_rules_and_pictures():
    notebook = execute("alignment")
    assert num_pictures(notebook) == 7
    shown = words(notebook)
    for rule in ("project", "condition", "chain", "end"):
        assert f"<td>{rule}</td>" in shown
    # Two released tokenizers split the same text differently.
    assert {"20 F0 9F", "20 66 6F 78", "E4 BD A0 E5 A5 BD"} <= set(re.findall(r"<td>([0-9A-F ]+)</td>", shown))
    sums = [row.split("</td>")[-3:-1] for row in shown.split("<tr>") if row.count("<td>") == 6 and "1.000" in row]
    assert len(sums) >= 10


@pytest.mark.slow
def test_the_ablation_notebook_shows_every_arm_and_verdict():
    notebook = execute("ablation")
    table = json.loads((RESULTS / "table.json").read_text())
    shown = words(notebook)
    for row in table["rows"]:
        assert f"<td>{row['name']}</td>" in shown
        assert {value for key, value in row.items() if key.endswith("_verdict") and value} <= set(
            re.findall(r"<td>([a-zA-Z ]+)</td>", shown)
        )
    assert all(note in shown for note in table["notes"])
    assert num_pictures(notebook) == 4


@pytest.mark.slow
def test_the_ablation_notebook_reads_another_folder(tmp_path):
    table = json.loads((RESULTS / "table.json").read_text())
    for row in table["rows"]:
        row["name"] = row["name"].replace("mpt", "another")
    (tmp_path / "table.json").write_text(json.dumps(table))
    (tmp_path / "ablation.png").write_bytes((RESULTS / "ablation.png").read_bytes())
    assert "<td>another</td>" in words(execute("ablation", PROFUSER_ABLATION=str(tmp_path)))


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_complete(name):
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert num_pictures(notebook) >= 4
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_reveals_nothing_about_the_machine(name):
    notebook = read(name)
    text = "\n".join([words(notebook), *(cell.source for cell in notebook.cells)])
    assert not MACHINE_PATH.findall(text)
    assert str(Path.home()) not in text
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)


def test_committed_results_reveal_nothing_about_the_machine():
    for file in RESULTS.iterdir():
        if file.suffix in (".json", ".csv", ".md"):
            assert not MACHINE_PATH.findall(file.read_text(encoding="utf-8")), file.name


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_contains_no_logic(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, LOGIC)], code
