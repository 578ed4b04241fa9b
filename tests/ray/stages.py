"""Runs single stages on the laboratory's models, for fault tests: real Ray, real engines, real signals."""

import gzip
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pyarrow as pa

from profuser.models.lab_paths import assets_path
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.stages.collect import CollectWorker, collect
from ray_jobs.stages.prepare import prepare
from ray_jobs.stages.rewards import rewards
from ray_jobs.stages.select import select
from ray_jobs.stages.signals import signals
from tests.benchmarks import base_run

NUM_ROWS, ROWS_PER_SHARD = 40, 8
MODELS = {name: f"lab://sources/{name}" for name in ("llama", "neox")}


def write_corpus(file, num_rows=NUM_ROWS):
    with gzip.open(assets_path() / "corpus" / "train.jsonl.gz", "rt") as stream:
        file.write_text("".join(next(stream) for _ in range(num_rows)))


def make_run(storage, corpus, models=MODELS, kind="transformers", pool=None, **changes):
    """Returns a run of two sources and a verifier; `changes` are sections of the recipe.

    A Transformers engine starts in half the time of vLLM's: `kind="vllm"` is for tests of the engine. No answer is rejected: the
    laboratory's specialists are right on a few of these rows only.
    """
    engine = {"kind": kind, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 16}
    recipe = {
        "name": "tiny",
        "storage": str(storage),
        "corpus": {"path": str(corpus), "heldout_rows": 4, "rows_per_shard": ROWS_PER_SHARD},
        "sources": [{"name": n, "model": path, "engine": engine, "pool": pool or {}} for n, path in models.items()],
        "target": {"model": models["llama"]},
        "collect": {"top_k": 6, "generation": {"max_tokens": 24}},
        "rewards": [{"kind": "exact_match", "name": "exact", "accept_above": None}],
        **changes,
    }
    return FusionRun(parse_recipe(recipe, "the test"))


def run_until_select(run):
    prepare(run)
    for source in run.recipe.sources:
        collect(run, source)
    for reward in run.recipe.rewards:
        rewards(run, reward)
    if run.recipe.collect.signals == "lazy":
        for source in run.recipe.sources:
            signals(run, source)
    select(run)


def select_here(run):
    """Makes what `run_until_select` makes, in this process without a cluster: for tests of later stages."""
    base_run.prepare(run)
    for source in run.recipe.sources:
        base_run.read([run], source.name)
    for reward in run.recipe.rewards:
        base_run.reward(run, reward)
    base_run.select(run)


def whole(artifact):
    """Returns all rows of a finished artifact, ordered by row id and mode."""
    table = pa.concat_tables(artifact.tables())
    keys = [(name, "ascending") for name in ("row_id", "mode") if name in table.column_names]
    return table.sort_by(keys).to_pylist()


def check_same(found, wanted):
    """Asserts equal rows and responses; log-probabilities may differ as they do between different batches."""
    assert [row["row_id"] for row in found] == [row["row_id"] for row in wanted]
    for mine, other in zip(found, wanted, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if name.endswith(("_logprobs", "_nats", "advantages")):
                np.testing.assert_allclose(np.array(value, dtype=float), np.array(other[name], dtype=float), atol=2e-2)
            elif "_topk_ids" not in name:  # candidates of nearly equal probability may swap
                assert value == other[name], name


def command_of(process):
    """Returns a process' command line; nothing of one that has just ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline() or [])
    return ""


def actors():
    """Returns the processes of the pools' actors below this one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if command.startswith("ray::") and "Map" in command and os.getpid() in [p.pid for p in process.parents()]:
            found.append(process)
    return found


class Meanwhile:
    """Runs an action in a thread as soon as a condition holds, while a stage runs."""

    def __init__(self, when, action, timeout=240):
        self.error = None
        self.thread = threading.Thread(target=self._watch, args=(when, action, time.monotonic() + timeout), daemon=True)

    def _watch(self, when, action, deadline):
        try:
            while not when():
                if time.monotonic() > deadline:
                    raise TimeoutError("the condition never held")
                time.sleep(0.02)
            action()
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join()
        assert self.error is None, self.error


def kill_an_actor():
    os.kill(actors()[0].pid, signal.SIGKILL)


class PoisonedWorker(CollectWorker):
    """A worker whose engine kills its process, or raises, on a certain prompt."""

    def __init__(self, *, poison, fatal, **arguments):
        super().__init__(**arguments)
        tokenizer, add = self.reader.engine.tokenizer, self.reader.engine.add

        def poisoned(number, request):
            if poison in tokenizer.decode(request.prompt_ids):
                if fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("device-side assert triggered")
            add(number, request)

        self.reader.engine.add = poisoned
