"""Building a laboratory: tokenizers, sources, reward models and corpus, from a seed or from any instruction corpus."""

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

from profuser.artifacts import versions
from profuser.errors import UserError
from profuser.lab import LAB_FILE
from profuser.lab.items import Item
from profuser.lab.reward_models import (
    REWARDS,
    Pair,
    corpus_pairs,
    new_reward_model,
    pairwise_accuracy,
    skill_pairs,
    train_reward_model,
)
from profuser.lab.skills import SPECIALTIES, draw_rows
from profuser.lab.specialists import Encoded, bits_per_byte, encode, exact_match, new_model, save, skill_examples, train
from profuser.lab.tokenizers import TOKENIZERS

NUM_TRAIN, NUM_HELDOUT, NUM_UNSEEN = 3000, 600, 100
SOURCE_STEPS = {"llama": 600, "mpt": 450, "neox": 600}
REWARD_STEPS = 500
CORPUS_SOURCE_STEPS, CORPUS_REWARD_STEPS = 220, 80
Say = Callable[[str], None]


def build_lab(output: Path, seed: int = 0, overwrite: bool = False, progress: Say = print, budget: float = 1.0) -> None:
    """Makes the laboratory of the six skills.

    Args:
        output: folder to make: `sources/`, `rewards/`, `corpus/`, and last `lab.json` with what was measured.
        seed: of everything that is drawn.
        overwrite: replace a finished laboratory.
        progress: told how far it is.
        budget: share of the training steps to take; with 1 the models are as good as the shipped ones.

    Raises:
        UserError: the folder holds a finished laboratory already.
    """
    start = time.monotonic()
    _make_room(output, overwrite)
    rows, heldout = draw_rows("train", NUM_TRAIN, seed), draw_rows("heldout", NUM_HELDOUT, seed)
    _write_corpus(output / "corpus" / "train.jsonl.gz", rows)
    _write_corpus(output / "corpus" / "heldout.jsonl.gz", heldout)
    texts = [text for row in rows for text in (row.instruction, row.response, row.terse)]
    tokenizers = {name: kind.make(texts, kind.lab_vocab_size) for name, kind in TOKENIZERS.items()}
    matches = {}
    for name in SPECIALTIES:
        torch.manual_seed(seed)
        model = new_model(name, tokenizers[name])
        steps = round(SOURCE_STEPS[name] * budget)
        train(model, skill_examples(name, tokenizers[name], seed), steps, 64, progress, f"source {name}")
        matches[name] = exact_match(model, tokenizers[name], heldout[:300])
        progress(f"source {name}: exact match " + ", ".join(f"{k} {v:.0%}" for k, v in matches[name].items()))
        save(model, tokenizers[name], output / "sources" / name)
    test = list(islice(skill_pairs(seed, "heldout"), 400))
    steps = round(REWARD_STEPS * budget)
    rewards = _build_rewards(
        output, tokenizers, lambda name: skill_pairs(seed + _number(name)), steps, 32, test, progress
    )
    _finish(output, start, {"seed": seed, "exact_match": matches, "reward_accuracy": rewards})


def build_sources_from_corpus(
    pairs: Sequence[tuple[str, str]], output: Path, seed: int = 0, overwrite: bool = False, progress: Say = print
) -> None:
    """Makes tiny sources and reward models from any instruction corpus, each source of its own slice.

    Args:
        pairs: instruction and response of every row.
        output: as in `build_lab`, without a corpus.
        seed: of everything that is drawn.
        overwrite: replace a finished laboratory.
        progress: told how far it is.

    Raises:
        UserError: too few rows, or the folder holds a finished laboratory already.
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
        train(model, examples, CORPUS_SOURCE_STEPS, 16, progress, f"source {name}")
        after = bits_per_byte(model, tokenizers[name], unseen)
        measured[name] = {"before": before, "after": after}
        progress(f"source {name}: {before:.3f} -> {after:.3f} bits per byte on {len(unseen)} unseen rows")
        save(model, tokenizers[name], output / "sources" / name)
    test = list(islice(corpus_pairs(unseen, seed), 200))
    rewards = _build_rewards(
        output,
        tokenizers,
        lambda name: corpus_pairs(rows, seed + _number(name)),
        CORPUS_REWARD_STEPS,
        16,
        test,
        progress,
    )
    _finish(output, start, {"seed": seed, "rows": len(rows), "bits_per_byte": measured, "reward_accuracy": rewards})


def _build_rewards(
    output: Path,
    tokenizers: dict[str, Any],
    pairs: Callable[[str], Iterator[Pair]],
    num_steps: int,
    batch_pairs: int,
    test: list[Pair],
    say: Say,
) -> dict[str, float]:
    accuracy = {}
    for name, source in REWARDS.items():
        torch.manual_seed(_number(name))
        tokenizer = tokenizers[source]
        model = new_reward_model(name, tokenizer)
        train_reward_model(model, tokenizer, pairs(name), num_steps, batch_pairs, say, f"reward {name}")
        accuracy[name] = pairwise_accuracy(model, tokenizer, test)
        say(f"reward {name}: right in {accuracy[name]:.0%} of {len(test)} held-out pairs")
        save(model, tokenizer, output / "rewards" / name)
    return accuracy


def _epochs(examples: list[Encoded], seed: int) -> Iterator[Encoded]:
    """The examples over and over, in random order; one whose prompt fills the context teaches nothing."""
    usable = [example for example in examples if example[1]]
    random.Random(seed).shuffle(usable)
    return cycle(usable)


def _number(name: str) -> int:
    return 1 + list(REWARDS).index(name)


def _make_room(output: Path, overwrite: bool) -> None:
    if (output / LAB_FILE).exists():
        if not overwrite:
            raise UserError(f"{output}: holds a laboratory already; take another folder, or --overwrite")
        (output / LAB_FILE).unlink()
    for part in ("sources", "rewards", "corpus"):
        shutil.rmtree(output / part, ignore_errors=True)


def _write_corpus(file: Path, items: Sequence[Item]) -> None:
    """Alpaca-shaped rows with two columns more. The archive's time is 0, so that the same seed gives the same bytes."""
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
