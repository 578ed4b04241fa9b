"""Builds a laboratory: tokenizers, sources, reward models and corpus, from a seed or from any instruction corpus."""

import gzip
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from profuser.artifacts.artifact import versions
from profuser.errors import UserError
from profuser.lab.items import Item
from profuser.lab.reward_models import (
    REWARDS,
    TOKENIZER,
    Pair,
    all_skills_examples,
    corpus_pairs,
    new_generalist,
    new_reward_model,
    pairwise_accuracy,
    skill_pairs,
    train_reward_model,
)
from profuser.lab.skills import SPECIALTIES, draw_rows
from profuser.lab.specialists import Encoded, bits_per_byte, encode, exact_match, new_model, save, skill_examples, train
from profuser.lab.tokenizers import TOKENIZERS
from profuser.models.lab_paths import LAB_FILE

NUM_TRAIN, NUM_HELDOUT, NUM_UNSEEN = 3000, 600, 100
"""Rows of the skills' corpus, for training and held out; rows of any other corpus on which models are measured."""
SOURCE_STEPS = {"llama": 600, "mpt": 450, "neox": 600}
GENERALIST_STEPS, REWARD_STEPS = 1300, 400
CORPUS_SOURCE_STEPS = 220
Progress = Callable[[str], None]


def build_lab(output: Path, seed: int = 0, overwrite: bool = False, progress: Progress = print) -> None:
    """Builds the laboratory of the six skills.

    Args:
        output: folder to create: `sources/`, `rewards/`, `corpus/`, and last `lab.json` with the measurements.
        seed: of all random draws.
        overwrite: replace a finished laboratory.
        progress: receives progress messages.

    Raises:
        UserError: the folder already contains a finished laboratory.
    """
    start = time.monotonic()
    _make_room(output, overwrite)
    heldout = draw_rows("heldout", NUM_HELDOUT, seed)
    _write_corpus(output / "corpus" / "train.jsonl.gz", draw_rows("train", NUM_TRAIN, seed))
    _write_corpus(output / "corpus" / "heldout.jsonl.gz", heldout)
    matches = {}
    for name in SPECIALTIES:
        model, tokenizer = build_specialist(name, seed, progress)
        matches[name] = exact_match(model, tokenizer, heldout[:300])
        progress(f"source {name}: exact match " + ", ".join(f"{k} {v:.0%}" for k, v in matches[name].items()))
        save(model, tokenizer, output / "sources" / name)
    tokenizer = lab_tokenizer(TOKENIZER, seed)
    generalist = _train_generalist(tokenizer, all_skills_examples(tokenizer, seed), GENERALIST_STEPS, 64, progress)
    accuracy = {}
    for number, name in enumerate(REWARDS, 1):
        pairs, test = skill_pairs(seed + number), list(islice(skill_pairs(seed, "heldout"), 400))
        model = _build_reward(generalist, tokenizer, name, pairs, REWARD_STEPS, 32, progress)
        accuracy[name] = _measure_reward(model, tokenizer, name, test, output, progress)
    _finish(output, start, {"seed": seed, "exact_match": matches, "reward_accuracy": accuracy})


def lab_tokenizer(name: str, seed: int) -> Any:
    """Trains the tokenizer of a source on the skills' corpus."""
    rows = draw_rows("train", NUM_TRAIN, seed)
    kind = TOKENIZERS[name]
    return kind.make([text for row in rows for text in (row.instruction, row.response, row.terse)], kind.lab_vocab_size)


def build_specialist(name: str, seed: int, progress: Progress = print) -> tuple[Any, Any]:
    """Builds one source of the laboratory: its model, in float32, and its tokenizer."""
    tokenizer = lab_tokenizer(name, seed)
    torch.manual_seed(seed)
    model = new_model(name, tokenizer)
    train(model, skill_examples(name, tokenizer, seed), SOURCE_STEPS[name], 64, progress, f"source {name}")
    return model, tokenizer


def build_sources_from_corpus(
    pairs: Sequence[tuple[str, str]],
    output: Path,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = print,
    num_steps: int = CORPUS_SOURCE_STEPS,
) -> None:
    """Builds tiny sources and reward models from any instruction corpus, each source from a separate slice.

    Args:
        pairs: instruction and response of every row.
        output: as in `build_lab`, without a corpus.
        seed: of all random draws.
        overwrite: replace a finished laboratory.
        progress: receives progress messages.
        num_steps: updates of each source, and of the reward models' generalist; a reward model takes a third of that.

    Raises:
        UserError: too few rows, or the folder already contains a finished laboratory.
    """
    start = time.monotonic()
    if len(pairs) < 2 * NUM_UNSEEN:
        raise UserError(f"lab build --corpus: {len(pairs)} usable rows, at least {2 * NUM_UNSEEN} are needed")
    _make_room(output, overwrite)
    rows = list(pairs)
    random.Random(seed).shuffle(rows)
    unseen, rows = rows[:NUM_UNSEEN], rows[NUM_UNSEEN:]
    tokenizers, measured = {}, {}
    for number, (name, kind) in enumerate(TOKENIZERS.items()):
        part = rows[number :: len(TOKENIZERS)]
        torch.manual_seed(seed)
        tokenizers[name] = kind.make([text for pair in part for text in pair], kind.corpus_vocab_size)
        model = new_model(name, tokenizers[name])
        before = bits_per_byte(model.eval(), tokenizers[name], unseen)
        examples = _epochs([encode(tokenizers[name], *pair) for pair in part], seed)
        train(model, examples, num_steps, 16, progress, f"source {name}")
        after = bits_per_byte(model, tokenizers[name], unseen)
        measured[name] = {"before": before, "after": after}
        progress(f"source {name}: {before:.3f} -> {after:.3f} bits per byte on {len(unseen)} unseen rows")
        save(model, tokenizers[name], output / "sources" / name)
    tokenizer = tokenizers[TOKENIZER]
    examples = _epochs([encode(tokenizer, *pair) for pair in rows], seed)
    generalist = _train_generalist(tokenizer, examples, num_steps, 16, progress)
    accuracy = {}
    for number, name in enumerate(REWARDS, 1):
        drawn, test = corpus_pairs(rows, seed + number), list(islice(corpus_pairs(unseen, seed), 200))
        model = _build_reward(generalist, tokenizer, name, drawn, num_steps // 3, 16, progress)
        accuracy[name] = _measure_reward(model, tokenizer, name, test, output, progress)
    _finish(output, start, {"seed": seed, "rows": len(rows), "bits_per_byte": measured, "reward_accuracy": accuracy})


def _train_generalist(
    tokenizer: Any, examples: Iterator[Encoded], num_steps: int, batch_rows: int, progress: Progress
) -> Any:
    torch.manual_seed(len(REWARDS))
    model = new_generalist(tokenizer)
    train(model, examples, num_steps, batch_rows, progress, "the rewards' generalist")
    return model


def _build_reward(
    generalist: Any,
    tokenizer: Any,
    name: str,
    pairs: Iterator[Pair],
    num_steps: int,
    batch_pairs: int,
    progress: Progress,
) -> Any:
    torch.manual_seed(REWARDS.index(name))
    model = new_reward_model(generalist)
    train_reward_model(model, tokenizer, pairs, num_steps, batch_pairs, progress, f"reward {name}")
    return model


def _measure_reward(model: Any, tokenizer: Any, name: str, test: list[Pair], output: Path, progress: Progress) -> float:
    accuracy = pairwise_accuracy(model, tokenizer, test)
    progress(f"reward {name}: correct on {accuracy:.0%} of {len(test)} held-out pairs")
    save(model, tokenizer, output / "rewards" / name)
    return accuracy


def _epochs(examples: list[Encoded], seed: int) -> Iterator[Encoded]:
    """Cycles through the examples in random order, without those whose prompt fills the context."""
    usable = [example for example in examples if example[1]]
    random.Random(seed).shuffle(usable)
    return cycle(usable)


def _make_room(output: Path, overwrite: bool) -> None:
    if (output / LAB_FILE).exists():
        if not overwrite:
            raise UserError(f"{output}: already contains a laboratory; choose another folder, or --overwrite")
        (output / LAB_FILE).unlink()
    for part in ("sources", "rewards", "corpus"):
        shutil.rmtree(output / part, ignore_errors=True)


def _write_corpus(file: Path, items: Sequence[Item]) -> None:
    """Writes Alpaca rows with two extra columns. The archive's timestamp is 0, so that the same seed gives the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"instruction": i.instruction, "input": "", "output": i.response, "skill": i.skill, "answer": i.answer}
        for i in items
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def _finish(output: Path, start: float, measured: dict[str, Any]) -> None:
    content = measured | {"versions": versions(), "seconds": round(time.monotonic() - start)}
    (output / LAB_FILE).write_text(json.dumps(content, indent=2) + "\n")
