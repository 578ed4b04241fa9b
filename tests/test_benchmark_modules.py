"""Every module under `tests/benchmarks` can be imported, and what it imports or patches in this project is there.

Most of what they do runs for minutes, on GPUs or with packages that are not installed: a rename elsewhere would break them unseen.
"""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from profuser.engines import loading
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.engine_worker import Evaluation
from tests.benchmarks import base_run
from tests.benchmarks.pretending import PretendingWorker
from tests.benchmarks.scale_run import recipe, write_rows

ROOT = Path(__file__).parents[1]
OURS = ("profuser", "ray_jobs", "tests")
FILES = sorted((ROOT / "tests" / "benchmarks").rglob("*.py"))


def dotted(node: ast.AST) -> str | None:
    """Returns `a.b.c` of such an expression."""
    if isinstance(node, ast.Name):
        return node.id
    parent = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{parent}.{node.attr}" if parent and isinstance(node, ast.Attribute) else None


def names(tree: ast.Module) -> Iterator[str]:
    """Yields every name of this project that a module imports, also inside functions, or reaches through an imported module."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.split(".")[0] in OURS}
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        if name and any(name.startswith(f"{module}.") for module in imported):
            yield name


def exists(name: str) -> bool:
    """Returns whether a dotted name is a module, or an attribute of one."""
    module, *rest = name.split(".")
    found = import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        if not hasattr(found, part):
            # A module that nothing has imported yet is no attribute of its package.
            if not hasattr(found, "__path__") or find_spec(module) is None:
                return False
            import_module(module)
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_benchmark_imports_and_all_that_it_uses_of_this_project_is_there(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    import_module(module)
    assert [name for name in names(ast.parse(file.read_text())) if not exists(name)] == []


def test_names_that_are_gone_are_found():
    source = (
        "import ray_jobs.runtime.engine_worker\n"
        "import profuser.engines.loading\n"
        "def use():\n"
        "    from profuser.errors import NoSuchError, UserError\n"
        "    ray_jobs.runtime.engine_worker.load_engine = None\n"
        "    profuser.engines.loading.load_engine = None\n"
    )
    gone = [name for name in names(ast.parse(source)) if not exists(name)]
    assert gone == ["profuser.errors.NoSuchError", "ray_jobs.runtime.engine_worker.load_engine"]


def test_the_fake_engine_of_the_benchmark_of_scale_collects_and_evaluates_as_a_real_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_engine", loading.load_engine)  # put back after the worker has replaced it
    write_rows(tmp_path / "rows.jsonl", 220)  # 200 are held out
    run = FusionRun(recipe(tmp_path, tmp_path / "rows.jsonl"))
    base_run.prepare(run)
    source = run.recipe.sources[0]
    output, path = run.collect(source), run.model(source).path
    model = loading.ReadModel(path, source, run.template(source))
    scores = run.evaluate("target")
    evaluation = Evaluation(run.heldout(), scores, run.recipe.evaluate, run.recipe.seed)
    worker = PretendingWorker(run.corpus(), output, model, run.reading(source), evaluation)
    for counts, artifact, num_rows in ((worker.process(0), output, 20), (worker.evaluate(0), scores, 200)):
        assert counts["rows"] == artifact.read_shard(0).num_rows == num_rows
        assert not counts["refused"]
