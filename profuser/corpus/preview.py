"""Reads the first rows of a corpus and reports what the stage `prepare` would say about them."""

import math
from dataclasses import dataclass

from profuser.corpus.category import OptionalFields
from profuser.corpus.heldout import choose_heldout
from profuser.corpus.prepare import RowCounts, check_quarantine, corpus_rows, first_cause, unused_line
from profuser.corpus.readers import read_corpus
from profuser.corpus.seen import SeenRows
from profuser.recipe.models import CorpusConfig
from profuser.recipe.preparing import PartConfig

PREVIEW_ROWS = 2_000


@dataclass(frozen=True)
class Preview:
    """What the first rows of a corpus say."""

    line: str
    """Their shape, how many are usable, the first reason for a refusal, and fields not used."""
    most_rows: float
    """Upper bound of the rows that will be used; infinity if there are more than were read, and no limit."""


def preview(
    config: CorpusConfig, path: str, seed: int = 0, is_heldout: bool = False, part: PartConfig | None = None
) -> Preview:
    """Reads the first rows.

    Args:
        config: the recipe's section.
        path: the corpus or one of its parts, see `read_corpus`.
        seed: seed of the choice of held-out rows.
        is_heldout: whether it is the separate held-out corpus.
        part: the part that it is.

    Raises:
        UserError: the corpus cannot be read; or it is no longer than the rows read here, and `prepare` would refuse it.
    """
    source = part or config
    counts, seen, named = RowCounts(), SeenRows(), OptionalFields(source.optional_fields)
    limit, is_whole = (config.heldout_rows or None) if is_heldout else config.max_rows, True
    for row in corpus_rows(config, named.watch(read_corpus(path)), seen, source):
        counts.add(row)
        if counts.accepted == limit:
            break
        if counts.read == PREVIEW_ROWS:
            is_whole = False
            break
    if is_whole:
        check_quarantine(path, counts, config.max_quarantined_fraction)
    if is_whole and not is_heldout:
        named.check(path)
    if is_whole and not is_heldout and not part:
        choose_heldout(seen, 0 if config.heldout else config.heldout_rows, seed, seen.prompts)
    most = config.max_rows or math.inf
    if part:
        most = part.num_used(counts.accepted) if is_whole else part.max_rows or math.inf
    return Preview(_words(counts, path, is_whole), most)


def _words(counts: RowCounts, path: str, is_whole: bool) -> str:
    shape = ", ".join(sorted(counts.shapes)) or "no known shape"
    rows = f"{'' if is_whole else 'the first '}{counts.read:,} rows read, {counts.accepted:,} usable"
    refused = f", {counts.quarantined:,} refused" if counts.quarantined else ""
    cause = first_cause(path, counts.first) if counts.first else ""
    unused = unused_line(counts.not_used())
    return f"{shape}: {rows}{refused}{cause}{'; ' if unused else ''}{unused}"
