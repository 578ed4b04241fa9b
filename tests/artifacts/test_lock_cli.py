"""Commands and the lock: those that write into a run refuse while another driver runs it; those that only read do not."""

import json
import sys
from dataclasses import replace

import pytest
import yaml

from profuser.artifacts.lock import RunLock
from profuser.artifacts.lock_holder import LOCK, Holder
from profuser.storage.folder import Folder
from ray_jobs.cli import app as cli
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def run(tmp_path, model):
    """The folder of a started run, with its recipe."""
    corpus = tmp_path / "data.jsonl"
    corpus.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(30)))
    folder = Folder.at(tmp_path / "runs" / "small")
    content = {
        "name": "small",
        "storage": str(tmp_path / "runs"),
        "corpus": {"path": str(corpus), "heldout_rows": 10},
        "sources": [{"name": "a", "model": model}, {"name": "b", "model": model}],
        "target": {"model": model},
        "rewards": [{"kind": "answer_match", "name": "match", "pattern": "is (.+)"}],
    }
    folder.write_bytes("recipe.yaml", yaml.safe_dump(content).encode())
    folder.write_json("summary.json", {"run": "small", "state": "running", "stages": {"fuse": {"state": "running"}}})
    (folder / "prepare" / "train").write_bytes("shard-00000.parquet", b"PAR1")
    return folder


@pytest.fixture
def profuser(monkeypatch, capsys):
    """Runs the command; returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["profuser", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def storage(run):
    return ("--storage", run.uri.rpartition("/")[0])


def test_commands_that_write_into_a_held_run_are_refused_and_change_nothing(run, profuser):
    recipe = run.path("recipe.yaml")
    with RunLock(run) as lock:
        names = run.names()
        for command in (
            ("run", recipe),
            ("run", recipe, "--redo", "prepare"),
            ("evaluate", "small", "--redo", *storage(run)),
            ("report", "small", *storage(run)),
        ):
            code, out, err = profuser(*command)
            assert (code, out) == (2, ""), err
            assert err.startswith(f"profuser: run {run.uri}: another driver ({lock.own}) is running it; ")
            assert err.count("\n") == 1
        assert run.names() == names
        assert (run / "prepare" / "train").read_bytes("shard-00000.parquet") == b"PAR1"
        lock.check()


def test_the_status_of_a_run_names_its_driver(run, profuser):
    with RunLock(run) as lock:
        code, out, _ = profuser("status", "small", *storage(run))
        assert code == 0
        assert f"driver: {lock.own}; last heartbeat" in out
        code, out, _ = profuser("status", "small", "--json", *storage(run))
        driver = json.loads(out)["driver"]
        assert (driver["pid"], driver["gone"]) == (lock.own.pid, False)
    run.write_bytes(LOCK, replace(Holder.new(), process_start="1").data())
    assert "gone; profuser run continues from here" in profuser("status", "small", *storage(run))[1]
    run.remove(LOCK)
    assert "driver" not in profuser("status", "small", *storage(run))[1]


def test_an_unwritable_storage_is_a_user_error(run, profuser, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = profuser("run", run.path("recipe.yaml"), "--set", f"storage={tmp_path / 'file'}")
    assert (code, out) == (2, "")
    assert "file/small: Not a directory; make it a folder, or choose another: --set storage=FOLDER" in err
    assert err.count("\n") == 1


def test_an_error_under_the_lock_leaves_no_lock(run, profuser, monkeypatch):
    (run / "prepare" / "train").write_json("manifest.json", {})
    code, _, err = profuser("run", run.path("recipe.yaml"))
    assert code == 1
    assert "not a manifest" in err
    assert not run.exists(LOCK)
