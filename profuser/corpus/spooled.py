"""Reads and checks a whole corpus, part by part, into a spool on disk: the rows are never in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa

from profuser.artifacts.schemas import corpus_schema
from profuser.corpus.category import OptionalFields
from profuser.corpus.mix import PART
from profuser.corpus.prepare import CorpusRow, RowCounts, check_quarantine, corpus_rows
from profuser.corpus.readers import read_corpus
from profuser.corpus.seen import SeenRows
from profuser.corpus.spool import Spool
from profuser.recipe.models import CorpusConfig
from profuser.recipe.preparing import PartConfig, RowsConfig

PART_FIELD = pa.field(PART, pa.string(), nullable=False)


@dataclass(frozen=True)
class SpooledRows:
    """The usable rows of a corpus, in order of their parts."""

    spool: Spool
    seen: SeenRows
    counts: Sequence[RowCounts]
    """Counts of each part."""

    @property
    def sizes(self) -> list[int]:
        """Usable rows of each part."""
        return [counts.accepted for counts in self.counts]

    @cached_property
    def prompts(self) -> np.ndarray:
        """Key of each row's prompt."""
        return np.array(self.seen.prompts, dtype=np.uint64)

    @property
    def shapes(self) -> set[str]:
        """Shapes of the records."""
        return {shape for counts in self.counts for shape in counts.shapes}

    def where(self, mask: np.ndarray) -> Iterator[pa.Table]:
        """Yields the rows at which a mask is true, in the corpus schema with a column for the part."""
        begin = 0
        for table in self.spool.tables():
            yield table.filter(pa.array(mask[begin : begin + len(table)]))
            begin += len(table)

    def not_used(self) -> dict[str, float]:
        """Returns the counts of what accepted records hold and no row uses."""
        found = [each.not_used() for each in self.counts]
        return {name: sum(counts.get(name, 0) for counts in found) for name in chain.from_iterable(found)}


def spooled_rows(
    config: CorpusConfig, sources: Sequence[RowsConfig], limit: int | None, refused: Spool, is_heldout: bool = False
) -> SpooledRows:
    """Sorts records into usable rows, and the rows refused up to there.

    Args:
        config: the recipe's section.
        sources: the corpus itself, or its parts; a row's part is then its name, else the shape of its record.
        limit: usable rows to read, at most.
        refused: spool of the refused rows.
        is_heldout: whether it is the separate held-out corpus, whose records may lack optional fields.

    Raises:
        UserError: too many rows of a part are refused, or none of its records has a field that the recipe names.
    """
    schema = corpus_schema(config.columns).append(PART_FIELD)
    rows = SpooledRows(Spool(schema, config.rows_per_shard), SeenRows(), [RowCounts() for _ in sources])
    for source, counts in zip(sources, rows.counts, strict=True):
        path, part = str(source.path), source.name if isinstance(source, PartConfig) else None
        named = OptionalFields({} if is_heldout else source.optional_fields)
        for row in corpus_rows(config, named.watch(read_corpus(path)), rows.seen, source):
            counts.add(row)
            if isinstance(row, CorpusRow):
                messages = [message._asdict() for message in row.messages]
                rows.spool.add(vars(row) | {"messages": messages, PART: part or row.shape})
            else:
                refused.add(vars(row))
            if counts.accepted == limit:
                break
        check_quarantine(path, counts, config.max_quarantined_fraction)
        named.check(path)
    return rows
