"""A run, end to end, on the shipped laboratory: killed in collect, killed in fuse, then finished."""

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from profuser.models.lab_paths import assets_path
from tests.notebooks.executing import execute, num_pictures, words

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1500)]

BIN = Path(sys.executable).parent
NUM_ROWS, NUM_HELDOUT, NUM_STEPS = 120, 24, 12
BROKEN = (
    "not json",
    '{"instruction": "no end',
    "[1, 2]",
    '{"instruction": "a", "output": ""}',
    '{"instruction": "", "output": "a"}',
    '{"instruction": 3, "output": "a"}',
    '{"instruction": "no output"}',
    '{"something": "else"}',
    "null",
    '{"instruction": "a", "output": ["b"]}',
)


def corpus(file):
    """Writes 120 good rows, with ten broken ones among them."""
    with gzip.open(assets_path() / "corpus" / "train.jsonl.gz", "rt") as stream:
        good = [next(stream).rstrip("\n") for _ in range(NUM_ROWS)]
    for number, line in enumerate(BROKEN):
        good.insert(7 + 9 * number, line)
    file.write_text("\n".join(good) + "\n")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    corpus(folder / "data.jsonl")
    return folder


@pytest.fixture(scope="module")
def command(storage):
    settings = {
        "storage": str(storage / "runs"),
        "corpus.path": str(storage / "data.jsonl"),
        "corpus.heldout": "null",
        "corpus.max_rows": "null",
        "corpus.heldout_rows": str(NUM_HELDOUT),
        "corpus.rows_per_shard": "12",
        "corpus.max_quarantined_fraction": "0.1",
        "fuse.duration": f"{{kind: steps, value: {NUM_STEPS}}}",
        "fuse.batch_tokens": "1024",
        "fuse.checkpoint_every_steps": "3",
        "evaluate.sources": "false",
        # Only one source on vLLM: a Transformers engine starts in half the time.
        "sources.mpt.engine.kind": "transformers",
        "sources.neox.engine.kind": "transformers",
        "target.engine.kind": "transformers",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [str(BIN / "profuser"), "run", "demo", *overrides]


def killed(command, log, when, timeout=300):
    """Starts the command and sends SIGKILL as soon as `when` is true."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + timeout
        while not when():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()


def shards(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*.parquet")}


def rows(folder):
    return [row for file in sorted(folder.glob("shard-*.parquet")) for row in pq.read_table(file).to_pylist()]


def row_ids(folder):
    return [row["row_id"] for row in rows(folder)]


def test_a_run_killed_twice_ends_with_every_row_once(storage, command):
    run = storage / "runs" / "demo"
    collect = run / "collect" / "mpt"
    killed(command, storage / "first.log", lambda: len(shards(collect)) >= 2)
    assert not (collect / "manifest.json").exists()
    kept = shards(collect)

    def has_checkpoint():
        return any((run / "fuse").glob("train-*/checkpoint_*/progress.json"))

    killed(command, storage / "second.log", has_checkpoint)
    assert "were done before" in (storage / "second.log").read_text()
    assert not (run / "fuse" / "manifest.json").exists()
    assert shards(collect).items() >= kept.items()

    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "collect/mpt: done before" in done.stdout
    assert "bits per byte: lower is better" in done.stdout
    assert f"report: {run / 'report' / 'index.html'}" in done.stdout
    check_rows(run)
    check_training(run)
    check_results(run)
    check_notebook(run)


def check_rows(run):
    """Asserts that every artifact has each usable row once, and the quarantine the ten broken ones, with line and reason."""
    ids = row_ids(run / "prepare" / "train")
    assert len(set(ids)) == len(ids) == NUM_ROWS - NUM_HELDOUT
    for stage in ("collect/llama", "collect/mpt", "collect/neox", "rewards/brisk", "rewards/candid", "rewards/dapper"):
        assert row_ids(run / stage) == ids, stage
    assert sorted(set(row_ids(run / "select"))) == sorted(ids)
    refused = rows(run / "prepare" / "quarantine")
    assert sorted(row["line"] for row in refused) == [8 + 9 * number for number in range(10)]
    assert all(row["reason"] for row in refused)


def check_training(run):
    """Asserts that each update is recorded once, in order, including those from before the kill."""
    history = [json.loads(line) for line in (run / "fuse" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == list(range(NUM_STEPS))
    assert history[0]["weight_training"] == 0
    assert history[-1]["weight_inference"] == pytest.approx(0.1)


def check_results(run):
    """Asserts that there is a model that Transformers loads, a report, a summary, and one MLflow run with a child per stage."""
    from mlflow import MlflowClient
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = run / "fuse" / "model"
    assert AutoTokenizer.from_pretrained(model).chat_template
    assert AutoModelForCausalLM.from_pretrained(model).config.architectures == ["LlamaForCausalLM"]
    assert "base_model" in (model / "README.md").read_text() or "# demo" in (model / "README.md").read_text()
    assert (run / "report" / "index.html").stat().st_size > 10_000
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert {entry["state"] for entry in summary["stages"].values()} == {"finished"}
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("profuser").experiment_id])
    names = sorted(found.info.run_name for found in runs)
    assert names == sorted(["demo", *(f"{stage} (demo)" for stage in summary["stages"])])
    assert {found.info.status for found in runs} == {"FINISHED"}
    (fuse,) = (found.info.run_id for found in runs if found.info.run_name == "fuse (demo)")
    rates = client.get_metric_history(fuse, "learning_rate")
    assert sorted(rate.step for rate in rates) == list(range(NUM_STEPS))
    heldout = [metric.step for metric in client.get_metric_history(fuse, "heldout_bits_per_byte")]
    assert heldout == sorted(heldout)
    assert heldout[-1] == NUM_STEPS - 1


def check_notebook(run):
    """Asserts that the notebook shows this run, up to the headline of its report."""
    notebook = execute("a_run", PROFUSER_RUN=str(run))
    shown = words(notebook)
    assert f"teachers of {NUM_ROWS - NUM_HELDOUT} corpus rows" in shown
    assert all(f"<td>{mode}</td>" in shown for mode in ("training", "inference"))
    assert all(
        f"<td>{reason}</td>" in shown for reason in {row["reason"] for row in rows(run / "prepare" / "quarantine")}
    )
    assert "the target before fusion" in shown
    assert num_pictures(notebook) == 6


def test_a_corpus_without_usable_rows_stops_the_run_with_one_line(tmp_path, command):
    (tmp_path / "data.jsonl").write_text('{"a": 1}\nnot json\n')
    settings = ["--set", f"corpus.path={tmp_path / 'data.jsonl'}", "--set", f"storage={tmp_path / 'runs'}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no usable row: 2 read, 2 refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_stops_after_the_requested_stage(tmp_path, command):
    stop = ["--until", "prepare", "--set", f"storage={tmp_path}"]
    done = subprocess.run([*command, *stop], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("stopped after prepare; run without --until to continue\n")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["state"] == "stopped"
    states = {entry["state"] for stage, entry in summary["stages"].items() if not stage.startswith("prepare")}
    assert states == {"waiting"}
