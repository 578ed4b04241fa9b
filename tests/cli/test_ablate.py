"""`profuser lab ablate`: a benchmark of the base that fails stops nothing, and is named at the end."""

from types import SimpleNamespace

import pytest

from profuser.errors import EngineError, ProfuserError
from profuser.storage.folder import Folder
from ray_jobs.cli import ablate


class Part:
    """An artifact of the base that is never complete."""

    def __init__(self, stage):
        self.stage = stage

    def is_complete(self):
        return self.stage == "select"


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """Returns an ablation without arms, over a base of which the second benchmark of every model fails."""

    def measure(base, name, benchmark, kept):
        if benchmark == "gsm8k":
            raise EngineError(f"benchmarks/{name}/gsm8k: no room for its answers")
        measured.append((name, benchmark))

    measured = []
    monkeypatch.setattr("ray_jobs.stages.evaluate.evaluate", lambda *_: None)
    monkeypatch.setattr("ray_jobs.stages.benchmarks.benchmarks", measure)
    base = SimpleNamespace(
        folder=Folder(str(tmp_path)),
        recipe=SimpleNamespace(evaluate=SimpleNamespace(benchmarks=["arc", "gsm8k", "mmlu"])),
        evaluated=lambda: ["target", "llama", "fused"],
        evaluate=lambda name: Part(f"evaluate/{name}"),
        benchmark=lambda name, benchmark: Part(f"benchmarks/{name}/{benchmark}"),
        check_inputs=lambda: None,
    )
    return SimpleNamespace(base=base, shared={"select": Part("select")}, measured=measured)


def test_a_failing_benchmark_of_the_base_stops_no_other(ablation, capsys):
    failed = ablate.run_base(ablation)
    assert failed == {
        f"benchmarks/{name}/gsm8k": f"benchmarks/{name}/gsm8k: no room for its answers" for name in ("target", "llama")
    }
    assert ablation.measured == [(name, one) for name in ("target", "llama") for one in ("arc", "mmlu")]
    assert "benchmarks/llama/gsm8k failed" in capsys.readouterr().out


def test_it_is_named_after_the_table(ablation, monkeypatch):
    made = []
    monkeypatch.setattr(ablate, "run_base", lambda _: {"benchmarks/target/gsm8k": "benchmarks/target/gsm8k: no room"})
    monkeypatch.setattr(ablate, "_is_measured", lambda _: False)
    monkeypatch.setattr(ablate, "connected", lambda: pytest.MonkeyPatch.context())
    for name in ("gather_results", "write_table", "print_table"):
        monkeypatch.setattr(ablate, name, lambda *_, name=name: made.append(name))
    ablation.runs, ablation.finished, ablation.check = [], list, lambda: None
    with pytest.raises(
        ProfuserError, match="1 benchmarks failed and are not in the table; benchmarks/target/gsm8k: no room"
    ):
        ablate.run_ablation(ablation)
    assert made == ["gather_results", "write_table", "print_table"]
