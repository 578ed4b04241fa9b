"""Writes the artifacts of a corpus: training rows, held-out rows, and quarantined rows.

The corpus is read once and never held in memory: rows are spooled on disk until the held-out rows are chosen.
"""

from collections.abc import Container, Iterable

import numpy as np
import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CORPUS, QUARANTINE
from profuser.corpus.category import OptionalFields
from profuser.corpus.heldout import choose_heldout
from profuser.corpus.prepare import CorpusRow, RowCounts, check_quarantine, corpus_rows
from profuser.corpus.readers import read_corpus
from profuser.corpus.rows import RawRow
from profuser.corpus.seen import SeenRows
from profuser.corpus.spool import ShardWriter, Spool
from profuser.recipe.models import CorpusConfig

IN_BOTH_REASON = "held-out row is also in the corpus"


def write_corpus(
    config: CorpusConfig,
    path: str,
    heldout_path: str | None,
    seed: int,
    corpus: Artifact,
    heldout: Artifact,
    quarantine: Artifact,
) -> list[dict[str, float]]:
    """Reads and checks the whole corpus, then writes the shards of three artifacts; writes nothing if the corpus is refused.

    Args:
        config: the recipe's section.
        path: the corpus, see `read_corpus`.
        heldout_path: a separate corpus to evaluate on; without it, rows of the corpus are held out.
        seed: seed of the choice of held-out rows.
        corpus: artifact of the training rows.
        heldout: artifact of the held-out rows.
        quarantine: artifact of the refused rows.

    Returns:
        Counts of the three artifacts, in this order.

    Raises:
        UserError: the corpus cannot be read, too many rows are refused, no record has the category field, or no row would be
            left to train on.
        ProfuserError: the temporary folder is full.
    """
    rows_per_shard = config.rows_per_shard
    kept, refused, seen = Spool(CORPUS, rows_per_shard), Spool(QUARANTINE, rows_per_shard), SeenRows()
    named = OptionalFields(config.optional_fields)
    summary = _read(path, named.watch(read_corpus(path)), config, config.max_rows, kept, refused, seen)
    named.check(path)
    for artifact in (corpus, heldout, quarantine):
        artifact.finished_shards()  # Renames shards of an attempt with other settings, which may have had more of them.
    train, held, bad = (ShardWriter(artifact, rows_per_shard) for artifact in (corpus, heldout, quarantine))
    if heldout_path is None:
        chosen = choose_heldout(seen, config.heldout_rows, seed, seen.prompts)
        for table in kept.tables():
            rest, known = _split(table, chosen)
            train.add(rest)
            held.add(known)
        _write(bad, refused.tables())
    else:
        separate = Spool(CORPUS, rows_per_shard)
        limit = config.heldout_rows or None
        _read(heldout_path, read_corpus(heldout_path), config, limit, separate, refused, SeenRows())
        _write(train, kept.tables())
        _write(bad, refused.tables())
        for table in separate.tables():
            rest, known = _split(table, seen)
            held.add(rest)
            bad.add(_both(known))
    for writer in (train, held, bad):
        writer.close()
    counts: dict[str, float] = {"rows": train.num_rows, "quarantined": bad.num_rows}
    counts |= summary.not_used()
    return [counts, {"rows": held.num_rows}, {"rows": bad.num_rows}]


def _read(
    path: str,
    raws: Iterable[RawRow],
    config: CorpusConfig,
    limit: int | None,
    kept: Spool,
    refused: Spool,
    seen: SeenRows,
) -> RowCounts:
    """Sorts records into usable rows, at most `limit`, and the rows refused up to there; returns their counts."""
    summary = RowCounts()
    for row in corpus_rows(config, raws, seen):
        summary.add(row)
        if isinstance(row, CorpusRow):
            kept.add(vars(row) | {"messages": [message._asdict() for message in row.messages]})
        else:
            refused.add(vars(row))
        if summary.accepted == limit:
            break
    check_quarantine(path, summary, config.max_quarantined_fraction)
    return summary


def _write(writer: ShardWriter, tables: Iterable[pa.Table]) -> None:
    for table in tables:
        writer.add(table)


def _split(rows: pa.Table, wanted: Container[str]) -> tuple[pa.Table, pa.Table]:
    """Splits rows into those whose ids are not wanted, and those whose ids are."""
    is_wanted = np.array([row_id in wanted for row_id in rows["row_id"].to_pylist()])
    return rows.filter(~is_wanted), rows.filter(is_wanted)


def _both(rows: pa.Table) -> pa.Table:
    """Returns held-out rows that are also in the corpus as quarantined rows."""
    num = rows.num_rows
    columns = [
        rows["source_file"],
        rows["source_line"],
        pa.array([IN_BOTH_REASON] * num, pa.string()),
        pa.array([""] * num, pa.string()),
    ]
    return pa.table(columns, schema=QUARANTINE)
