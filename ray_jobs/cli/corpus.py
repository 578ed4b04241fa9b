"""Prints what the stage `prepare` would say about the first rows of a corpus."""

from collections.abc import Callable

from profuser.corpus.locations import HUB
from profuser.corpus.preview import preview
from profuser.errors import UserError
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.progress import print_line


def print_corpus(run: FusionRun) -> None:
    """Prints a line on the corpus, and one on the separate held-out corpus; raises UserError if `prepare` would refuse it."""
    config, held, seed = run.recipe.corpus, run.heldout_path, run.recipe.seed
    _print("corpus", lambda: preview(config, run.corpus_path, seed), run.corpus_path)
    if held is not None:
        _print("held-out corpus", lambda: preview(config, held, seed, is_heldout=True), held)


def _print(name: str, line: Callable[[], str], path: str) -> None:
    try:
        print_line(f"{name}: {line()}")
    except UserError as error:
        if not path.startswith(HUB):
            raise
        print_line(f"{name}: its rows are checked when the run starts ({error})")
