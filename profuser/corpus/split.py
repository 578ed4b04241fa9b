"""Decides which rows of a corpus are trained on, which are held out, and which are left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from profuser.corpus.decontaminate import HELDOUT, Decontamination, Shared, texts_of
from profuser.corpus.heldout import choose_heldout
from profuser.corpus.mix import draw
from profuser.corpus.spool import Spool
from profuser.corpus.spooled import SpooledRows, spooled_rows
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig

Questions = Mapping[str, Sequence[Sequence[str]]]
"""Questions of each benchmark, each as one or more texts."""


@dataclass(frozen=True)
class Split:
    """The sides of a corpus, as masks over its spooled rows."""

    rows: SpooledRows
    is_train: np.ndarray
    held: SpooledRows
    """Rows of the separate held-out corpus; without one, `rows`."""
    is_held: np.ndarray
    """Mask over `held`."""
    is_left_out: np.ndarray
    """Rows that the share or limit of their part leaves out."""
    shared: Mapping[int, Shared] = field(default_factory=dict)
    """Rows dropped by decontamination, by their place, in order."""
    compared: Mapping[str, float] = field(default_factory=dict)
    """Counts of the decontamination."""

    @property
    def is_separate(self) -> bool:
        """Whether there is a separate held-out corpus."""
        return self.held is not self.rows

    def dropped(self) -> Iterator[tuple[pa.Table, list[Shared]]]:
        """Yields the rows dropped by decontamination, and what each shares."""
        mask, left = np.zeros(len(self.is_train), dtype=bool), iter(self.shared.values())
        mask[list(self.shared)] = True
        for table in self.rows.where(mask):
            yield table, [next(left) for _ in range(len(table))]


def split_corpus(config: CorpusConfig, seed: int, refused: Spool, questions: Questions) -> Split:
    """Reads a corpus, and its separate held-out corpus if there is one, and decides about every row.

    A prompt of the corpus is never held out too: where it repeats in the corpus its rows are held out together, and in a separate
    held-out corpus its rows are left out.

    Args:
        config: the recipe's section; its paths are as for `read_corpus`.
        seed: seed of the choice of held-out rows, and of the rows of each part.
        refused: spool of the refused rows.
        questions: questions of the benchmarks, for `decontaminate`.

    Raises:
        UserError: see `spooled_rows`; or no row would be left to train on.
    """
    rows = spooled_rows(config, config.sources, config.max_rows, refused)
    is_used = draw(config, rows.seen, rows.sizes, seed)
    if config.heldout is None:
        held, is_held = rows, _held_out(config, rows, is_used, seed)
        is_train = is_used & ~is_held
    else:
        own = config.model_copy(update={"path": config.heldout, "parts": ()})
        held = spooled_rows(config, [own], config.heldout_rows or None, refused, is_heldout=True)
        is_held, is_train = ~np.isin(held.prompts, rows.prompts[is_used]), is_used
    if not config.decontaminate:
        return Split(rows, is_train, held, is_held, ~is_used)
    compared = Decontamination(questions)
    for table in held.where(is_held):
        compared.add(HELDOUT, map(texts_of, table.to_pylist()))
    shared = _shared(compared, rows, is_train)
    if len(shared) == is_train.sum():
        raise UserError(
            f"corpus.decontaminate: all {len(shared):,} training rows share 13 words with a benchmark or a held-out row, the first "
            f"with {next(iter(shared.values())).found_in}: none is left to train on"
        )
    is_clean = np.ones(len(is_train), dtype=bool)
    is_clean[list(shared)] = False
    return Split(rows, is_train & is_clean, held, is_held, ~is_used, shared, compared.counts())


def _held_out(config: CorpusConfig, rows: SpooledRows, is_used: np.ndarray, seed: int) -> np.ndarray:
    """Returns which rows are held out of the corpus itself."""
    row_ids = rows.seen if is_used.all() else [row_id for row_id, used in zip(rows.seen, is_used, strict=True) if used]
    chosen = choose_heldout(row_ids, config.heldout_rows, seed, rows.prompts[is_used].tolist())
    return np.fromiter((row_id in chosen for row_id in rows.seen), bool, len(rows.seen))


def _shared(compared: Decontamination, rows: SpooledRows, is_train: np.ndarray) -> dict[int, Shared]:
    """Returns what the contaminated training rows share, by their place; reads the rows twice."""
    suspects = []
    places = iter(np.flatnonzero(is_train).tolist())
    for table in rows.where(is_train):
        suspects += [place for row, place in zip(table.to_pylist(), places, strict=False) if compared.watch(row)]
    mask = np.zeros(len(is_train), dtype=bool)
    mask[suspects] = True
    again = (row for table in rows.where(mask) for row in table.to_pylist())
    found = {place: compared.find(row) for place, row in zip(suspects, again, strict=True)}
    return {place: shared for place, shared in found.items() if shared}
