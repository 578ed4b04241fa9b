"""The collect stage (Ray Data, actor, shards written) against its engine fed at once, start-up apart; and from source to source."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from profuser.engines.base import Request
from profuser.engines.loading import ReadModel
from profuser.engines.vllm import ENVIRONMENT
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.concurrency import run_concurrently
from ray_jobs.runtime.shards import run_shards
from ray_jobs.stages.collect import CollectWorker
from ray_jobs.stages.prepare import prepare
from tests import tiny
from tests.benchmarks.measure import Row

K, NUM_ROWS, ROWS_PER_SHARD = 10, 768, 64
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 4096,
}
"""Shape of a model whose engine processes some thousand tokens/s here, like a 7B on a GPU: the stage's overhead is measured
against that. A tiny model's engine reads 40,000 tokens/s, and is measured too."""
LONG, SHORT = "Sort the letters a u and say 0. The answer is 42, and 42. " * 8, "No."
KINDS = {
    "generation": {"response": SHORT, "max_tokens": 96, "shape": SHAPE, "repeats": 5, "reach": ">= 0.95 x"},
    "teacher forcing": {"response": LONG, "max_tokens": 1, "shape": SHAPE, "repeats": 5, "reach": ">= 0.90 x"},
    "generation of a tiny model": {"response": SHORT, "max_tokens": 96, "shape": {}, "repeats": 1, "reach": ""},
    "teacher forcing of a tiny model": {"response": LONG, "max_tokens": 1, "shape": {}, "repeats": 1, "reach": ""},
}
"""A model with random weights rarely ends a turn, so its answers have a realistic length."""


class TimedWorker(CollectWorker):
    """Feeds all requests of the stage to the bare engine, before and after the stage, and records when shards end."""

    def __init__(self, *arguments, notes: str):
        super().__init__(*arguments)
        self.notes, self.shards_left = Path(notes), self.source.shards()
        self.requests, self.begin = self._requests(), 0.0
        self._bare()  # warms up
        self.bare = [self._bare()]

    def _requests(self) -> list[Request]:
        """Returns the stage's requests, taken from its own reader."""
        asked: list[Request] = []
        reader: Any = self.reader
        loop, reader.loop = reader.loop, _Listener(asked)
        for shard in self.source.shards():
            try:
                self.reader.read(self.source.read_shard(shard), self.how)
            except StopIteration:
                continue
        reader.loop = loop
        return asked

    def _bare(self) -> tuple[float, int]:
        """Returns the seconds of vLLM's own `generate` over all requests, and the response tokens."""
        from vllm import TokensPrompt

        engine: Any = self.reader.engine
        prompts = [TokensPrompt(prompt_token_ids=r.prompt_ids + (r.response_ids or [])) for r in self.requests]
        parameters = [engine._parameters(request) for request in self.requests]
        for each in parameters:
            each.flat_logprobs = True  # vLLM's fastest way
        start = time.perf_counter()
        outputs = engine.llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        pairs = zip(self.requests, outputs, strict=True)
        return seconds, sum(len(r.response_ids or out.outputs[0].token_ids) for r, out in pairs)

    def process(self, shard: int) -> dict[str, float]:
        self.begin = self.begin or time.perf_counter()
        counts = super().process(shard)
        self.shards_left.remove(shard)
        if not self.shards_left:
            seconds = time.perf_counter() - self.begin
            self.bare.append(self._bare())
            tokens = self.bare[0][1]
            bare = sum(each for each, _ in self.bare) / len(self.bare)
            self.notes.write_text(json.dumps({"stage": tokens / seconds, "bare": tokens / bare}))
        return counts


class _Listener:
    """Engine that collects requests and answers none."""

    def __init__(self, asked: list[Request]):
        self.asked = asked

    def run(self, requests):
        self.asked += requests
        return iter(())


class NotingWorker(CollectWorker):
    """Records when its first shard began and its last one ended."""

    def __init__(self, *arguments, notes: str):
        super().__init__(*arguments)
        self.notes, self.known = Path(notes), {}

    def process(self, shard: int) -> dict[str, float]:
        self.known.setdefault("first", time.time())
        counts = super().process(shard)
        self.notes.write_text(json.dumps(self.known | {"last": time.time()}))
        return counts


def make_run(folder: Path, kind: dict, num_sources: int) -> FusionRun:
    lines = [{"question": f"Sort the letters {n}.", "answer": kind["response"]} for n in range(NUM_ROWS)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = [tiny.llama(folder / f"model{number}", seed=number, **kind["shape"]) for number in range(num_sources)]
    engine = {"kind": "vllm", "max_num_seqs": 64}
    recipe = {
        "name": "bench",
        "storage": str(folder),
        "corpus": {"path": str(folder / "data.jsonl"), "heldout_rows": 0, "rows_per_shard": ROWS_PER_SHARD},
        "sources": [{"name": f"s{n}", "model": path, "engine": engine} for n, path in enumerate(models)],
        "target": {"model": models[0]},
        "collect": {"top_k": K, "generation": {"max_tokens": kind["max_tokens"]}},
        "rewards": [{"kind": "exact_match", "name": "exact"}],
    }
    run = FusionRun(parse_recipe(recipe, "the benchmark"))
    prepare(run)
    return run


def run_stage(run: FusionRun, index: int, worker: type, notes: Path, draining=None) -> None:
    source = run.recipe.sources[index]
    output = run.collect(source)
    model = ReadModel(source.model, source, run.recipe.template)
    make = partial(worker, run.corpus(), output, model, run.reading(source), notes=str(notes))
    run_shards(output, run.corpus(), make, source.pool, 0.0, source.engine.shards_in_flight, draining)


def middle_of(kind: dict) -> tuple[dict[str, float], list[float]]:
    """Returns the run with the median ratio, of as many as `kind` requests, and all ratios: single runs differ by a tenth."""
    found = sorted((through_the_stage(kind) for _ in range(kind["repeats"])), key=_ratio)
    return found[len(found) // 2], [_ratio(each) for each in found]


def _ratio(found: dict[str, float]) -> float:
    return found["stage"] / found["bare"]


def through_the_stage(kind: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        run_stage(make_run(Path(folder), kind, 1), 0, TimedWorker, notes)
        return json.loads(notes.read_text())


def from_source_to_source() -> tuple[float, float]:
    """Returns the seconds between the first engine's last shard and the second's first, and of the first engine's start-up."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), KINDS["generation of a tiny model"], 2)
        notes = [Path(folder) / f"notes{number}.json" for number in range(2)]
        works = [
            lambda draining, n=number: run_stage(run, n, NotingWorker, notes[n], draining)
            for number in range(len(notes))
        ]
        start = time.time()
        run_concurrently(works, 1)
        before, after = (json.loads(note.read_text()) for note in notes)
        return after["first"] - before["last"], before["first"] - start


def run() -> list[Row]:
    assert ENVIRONMENT  # imported before vLLM: it sets variables that vLLM reads
    out = []
    with connected():
        for name, kind in KINDS.items():
            found, ratios = middle_of(kind)
            title = f"collect, {name}, against the bare engine ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
            out.append(Row(title, found["stage"], "tokens/s", found["bare"], kind["reach"]))
        gap, startup = from_source_to_source()
        out.append(Row("from one source to the next, against the next engine's start-up", gap, "s", startup, "<= 1 x"))
    return out
