"""Compares our alignment with other methods, on three released models and the first rows of GSM8K.

    python -m tests.benchmarks peers [--models FOLDER] [--only STAGE ...] [--rows 40] [--short-rows 120] [--minutes N]

Stages: `bits` (with the cost of K), `gradients`, `exactness`, `ends` (of turn; also on short answers of Alpaca), `speed`.

The models' folder (or `PROFUSER_PEER_MODELS`) is written by `../shared/models/make_models.py`; without it nothing is measured.
GOLD is TRL's own code, from a separate environment that sees this one's packages:

    python -m venv peers && ls -d $PWD/.venv/lib/python3*/site-packages > peers/lib/python3.11/site-packages/profuser.pth
    peers/bin/python -m pip install --no-deps trl==1.16.0
    peers/bin/python -m tests.benchmarks peers --models FOLDER
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profuser.alignment.source_signals import SourceSignals
from profuser.alignment.transport import transport_rows
from profuser.artifacts.artifact import git_commit
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from tests.benchmarks.measure import by_turns, once
from tests.benchmarks.peers import gold
from tests.benchmarks.peers.carried import fusellm
from tests.benchmarks.peers.continuations import Continuer
from tests.benchmarks.peers.figures import Figure
from tests.benchmarks.peers.models import DATA, FOLDER, NAMES, Model, Reading, Row, alpaca, gsm8k
from tests.benchmarks.peers.pairs import Answer, K, Pair
from tests.benchmarks.peers.stages import Bits, EndsOfTurn, Exact, Gradients

OUTPUT = Path("benchmarks-peers.json")
SPEED_TOKENS = 100_000


class Speed:
    """Measures tokens per second of transport on one core, on these signals repeated up to `SPEED_TOKENS`."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.signals: dict[str, list[tuple[np.ndarray, np.ndarray, TopK, np.ndarray, bytes]]] = {}

    def add(self, answer: Answer) -> None:
        source, topk = answer.source, answer.source.topk(K)
        half = TopK(topk.ids, topk.logprobs.astype(np.float16))
        part = source.ids, source.own.astype(np.float32), half, answer.target.ids, answer.text.encode()
        self.signals.setdefault(answer.pair.name, []).append(part)
        self.answers.setdefault(answer.pair.name, [answer])

    def figures(self) -> list[Figure]:
        torch.set_num_threads(1)
        return [self._of(name, parts) for name, parts in self.signals.items()]

    def _of(self, name: str, parts: list[Any]) -> Figure:
        first = self.answers[name][0]
        parts = parts * (SPEED_TOKENS // sum(len(part[3]) for part in parts) + 1)
        ids, own, topk, goals, responses = zip(*parts, strict=True)
        flat = TopK(np.concatenate([each.ids for each in topk]), np.concatenate([each.logprobs for each in topk]))
        batch, wanted = SourceSignals(Ragged.from_rows(ids), np.concatenate(own), flat), Ragged.from_rows(goals)
        way = {"ours": lambda: transport_rows(batch, wanted, list(responses), first.pair.projection)}
        rate = len(wanted.values) / by_turns(way)["ours"]
        mapping = first.pair.min_edit.with_tokens(first.source.topk(K).ids)
        models = first.pair.source, first.pair.target
        slow = len(first.target.ids) / once(lambda: fusellm(first.source, first.target, models, mapping))
        title = f"{name}, transport at K = {K}, against FuseLLM's method in plain Python"
        return Figure(title, rate, "tokens/s", slow, ">= 1,000,000", num=len(wanted.values))


STAGES: dict[str, type] = {"bits": Bits, "gradients": Gradients, "exactness": Exact, "ends": EndsOfTurn, "speed": Speed}


def run(show: Callable[[str, list[Figure]], None], log: Callable[[str], None], options: list[str]) -> None:
    """Measures, shows each stage's figures, and writes them all."""
    chosen = parse(options)
    if not all((chosen.models / name / "model.safetensors").is_file() for name in NAMES) or not DATA.is_dir():
        log(
            f"peers: left out: no models in {chosen.models} (see ../shared/models/make_models.py), or no ../shared/data"
        )
        return
    started = time.perf_counter()
    models = {name: Model.load(name, chosen.models) for name in NAMES}
    pairs = [Pair(models[source], models[target]) for source, target in permutations(NAMES, 2)]
    stages = {name: STAGES[name]() for name in chosen.only}
    short = {"ends": EndsOfTurn()} if "ends" in stages else {}
    read = {
        "gsm8k": measure(gsm8k(chosen.rows), pairs, stages, chosen.minutes, log),
        "alpaca": measure(alpaca(chosen.short_rows), pairs, short, chosen.minutes, log),
    }
    every = stages | {f"{name}, short answers": stage for name, stage in short.items()}
    found = {name: stage.figures() for name, stage in every.items()}
    for name, figures in found.items():
        show(name, figures)
    write(chosen.output, every, found, read | {"seconds": round(time.perf_counter() - started)})
    log(f"written to {chosen.output}")


def parse(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tests.benchmarks peers")
    parser.add_argument("--models", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--short-rows", type=int, default=120)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="time limit per corpus; later rows are left out"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(options)


def measure(
    rows: list[Row], pairs: list[Pair], stages: dict[str, Any], minutes: float, log: Callable[[str], None]
) -> int:
    """Reads row after row with every model, hands each pair's answer to each stage, and returns the number of rows read."""
    if not stages:
        return 0
    models = {model.name: model for pair in pairs for model in (pair.source, pair.target)}
    examples = {name: model.encode(rows) for name, model in models.items()}
    until, num = time.perf_counter() + 60 * minutes, 0
    for number, row in enumerate(rows):
        readings = {name: model.read(examples[name][number], row.answer) for name, model in models.items()}
        if any(reading.spans.refused for reading in readings.values()):
            log(f"row {number}: left out, misspelt")
            continue
        for answer in answers(row.answer, pairs, models, readings):
            for stage in stages.values():
                stage.add(answer)
        num += 1
        if number % 5 == 4:
            log(f"{number + 1} of {len(rows)} rows")
        if time.perf_counter() > until:
            break
    return num


def answers(text: str, pairs: list[Pair], models: dict[str, Model], readings: dict[str, Reading]) -> Iterator[Answer]:
    """Yields one answer as read by each pair; pairs of one source share its cache."""
    continuer = lru_cache(lambda name: Continuer(models[name], readings[name]))
    for pair in pairs:
        source, target = pair.source.name, pair.target.name
        yield Answer(text, pair, readings[source], readings[target], partial(continuer, source))


def write(output: Path, stages: dict[str, Any], found: dict[str, list[Figure]], facts: dict[str, int]) -> None:
    """Writes everything as JSON: figures by stage, reliability of ends, and refusals."""
    entries = {
        name: [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in figures]
        for name, figures in found.items()
    }
    ends = {name: stage.ends for name, stage in stages.items() if isinstance(stage, EndsOfTurn)}
    report = {
        "commit": git_commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "trl": gold.version(),
        "read": facts,
        "refused": next((stage.refused for stage in stages.values() if isinstance(stage, Gradients)), {}),
        "figures": entries,
        "reliability": {name: {pair: each.reliability() for pair, each in by.items()} for name, by in ends.items()},
    }
    output.write_text(json.dumps(report, indent=2) + "\n")
