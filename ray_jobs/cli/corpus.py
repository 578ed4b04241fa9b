"""Prints what the stage `prepare` would say about the first rows of a corpus."""

import math
from collections.abc import Callable
from functools import partial

from profuser.corpus.decontaminate import HELDOUT, NUM_WORDS
from profuser.corpus.heldout import check_some_left
from profuser.corpus.locations import HUB
from profuser.corpus.preview import Preview, preview
from profuser.errors import UserError
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.progress import print_line


def print_corpus(run: FusionRun) -> None:
    """Prints a line on the corpus or each of its parts, and one on the separate held-out corpus, and what decontamination compares.

    Raises:
        UserError: `prepare` would refuse the corpus.
    """
    config, seed = run.corpus_config, run.recipe.seed
    path, held = config.path, config.heldout
    if path is not None:
        _print("corpus", lambda: preview(config, path, seed), path)
    most = [
        _print(f"corpus, {part.name}", partial(preview, config, part.path, seed, part=part), part.path)
        for part in config.parts
    ]
    if most and sum(most) < math.inf and held is None:
        check_some_left(int(sum(most)), config.heldout_rows)
    if held is not None:
        _print("held-out corpus", lambda: preview(config, held, seed, is_heldout=True), held)
    if config.decontaminate:
        others = [benchmark.name for benchmark in run.recipe.evaluate.benchmarks]
        print_line(
            f"decontamination: rows that share {NUM_WORDS} words with {', '.join([*others, HELDOUT])} are dropped"
        )


def _print(name: str, read: Callable[[], Preview], path: str) -> float:
    """Prints a preview; returns an upper bound of the rows."""
    try:
        found = read()
    except UserError as error:
        if not path.startswith(HUB):
            raise
        print_line(f"{name}: its rows are checked when the run starts ({error})")
        return math.inf
    print_line(f"{name}: {found.line}")
    return found.most_rows
