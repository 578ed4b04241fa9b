"""Single stages: `python -m ray_jobs STAGE`, with the options of `profuser run`; a stage's inputs must be finished."""

import runpy
import sys

import pytest

from profuser.run.stages import REGISTRY
from tests.cli.test_app import model, profuser, recipe  # noqa: F401

PART_OPTIONS = {"--source", "--reward", "--model"}


def script(monkeypatch, capsys, *arguments):
    """Returns exit code, standard output and standard error of `python -m ray_jobs ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["ray_jobs", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ray_jobs", run_name="__main__")
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("stage", REGISTRY.values(), ids=REGISTRY)
def test_every_stage_is_a_command(monkeypatch, capsys, stage):
    code, out, _ = script(monkeypatch, capsys, stage.name, "--help")
    assert code == 0
    assert f"Usage: python -m ray_jobs {stage.name}" in out
    options = {"--set", "--arm", "--redo", *PART_OPTIONS} & set(out.split())
    assert options == {"--set", "--arm", "--redo", *([f"--{stage.part_option}"] if stage.part_option else [])}


def test_running_all_stages_is_a_command_with_the_options_of_run(monkeypatch, capsys):
    _, out, _ = script(monkeypatch, capsys, "run", "--help")
    assert "Usage: python -m ray_jobs run" in out
    assert {"--set", "--arm", "--redo", "--until", "--only", "--dry-run"} <= set(out.split())


def test_a_stage_names_all_of_its_unfinished_inputs(monkeypatch, capsys, recipe, tmp_path):  # noqa: F811
    code, out, err = script(monkeypatch, capsys, "select", recipe)
    assert (code, out) == (2, "")
    missing = "prepare/train, collect/a, collect/b, rewards/match"
    assert err == f"profuser: select needs unfinished inputs: {missing}; begin with the stage prepare\n"
    assert not list((tmp_path / "runs" / "small").rglob("*.*"))


def test_evaluating_only_the_target_needs_no_fused_model(monkeypatch, capsys, recipe):  # noqa: F811
    _, _, err = script(monkeypatch, capsys, "evaluate", recipe, "--model", "target")
    assert "evaluate/target needs unfinished inputs: prepare/heldout;" in err
    _, _, err = script(monkeypatch, capsys, "evaluate", recipe)
    needed = "prepare/train, prepare/heldout, collect/a, collect/b, rewards/match, select, fuse"
    assert f"profuser: evaluate needs unfinished inputs: {needed}; begin with" in err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("collect", ["--source", "c"], "--only collect/c: no such part; there are: collect/a, collect/b"),
        ("signals", [], "--only signals: this recipe has no signals"),
        (
            "collect",
            ["--source", "a", "--redo"],
            "--redo collect: with --only collect/a it would be deleted but not rebuilt",
        ),
    ],
)
def test_an_impossible_part_is_reported_in_one_line(monkeypatch, capsys, recipe, tmp_path, name, arguments, message):  # noqa: F811
    code, out, err = script(monkeypatch, capsys, name, recipe, *arguments)
    assert (code, out, err) == (2, "", f"profuser: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_only_requires_a_stage_name(monkeypatch, capsys, recipe):  # noqa: F811
    code, _, err = profuser(monkeypatch, capsys, "run", recipe, "--only", "selection")
    assert code == 2
    assert err.startswith("profuser: --only selection: no such stage; there are: prepare, collect,")


def test_only_and_until_exclude_each_other(monkeypatch, capsys, recipe):  # noqa: F811
    code, _, err = profuser(monkeypatch, capsys, "run", recipe, "--only", "collect", "--until", "select")
    assert (code, err) == (2, "profuser: --only, --until: give only one of them\n")
