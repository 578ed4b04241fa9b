"""Writes the artifacts of a corpus: training rows, held-out rows, quarantined rows, and rows dropped by decontamination.

The corpus is read once and never held in memory: rows are spooled on disk until the held-out rows are chosen.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CONTAMINATED, QUARANTINE
from profuser.corpus.decontaminate import Shared
from profuser.corpus.mix import PART, part_counts, with_categories
from profuser.corpus.seen import SeenRows
from profuser.corpus.split import Questions, Split, split_corpus
from profuser.corpus.spool import ShardWriter, Spool
from profuser.recipe.models import CorpusConfig

IN_BOTH_REASON = "held-out row is also in the corpus"
SAME_PROMPT_REASON = "prompt of a held-out row is also in the corpus"


def write_corpus(
    config: CorpusConfig, seed: int, artifacts: Sequence[Artifact], questions: Questions
) -> list[dict[str, float]]:
    """Reads and checks the whole corpus, then writes the shards of the artifacts; writes nothing if the corpus is refused.

    Args:
        config: the recipe's section; its paths are as for `read_corpus`.
        seed: seed of the choice of held-out rows, and of the rows of each part.
        artifacts: of the training rows, the held-out rows, the refused rows, and with `decontaminate` the rows that it drops.
        questions: questions of the benchmarks, for `decontaminate`.

    Returns:
        Counts of the artifacts, in this order.

    Raises:
        UserError: the corpus cannot be read, too many rows are refused, no record has the category field, or no row would be
            left to train on.
        ProfuserError: the temporary folder is full.
    """
    refused = Spool(QUARANTINE, config.rows_per_shard)
    split = split_corpus(config, seed, refused, questions)
    for artifact in artifacts:
        artifact.finished_shards()  # Renames shards of an attempt with other settings, which may have had more of them.
    writers = [ShardWriter(artifact, config.rows_per_shard) for artifact in artifacts]
    parts = _write_rows(config, split, writers[0], writers[1])
    bad = writers[2]
    for table in refused.tables():
        bad.add(table)
    if split.is_separate:
        for table in split.held.where(~split.is_held):
            bad.add(_both(table, split.rows.seen))
    for writer in writers[3:]:
        for table, shared in split.dropped():
            writer.add(_contaminated(table, shared))
    for writer in writers:
        writer.close()
    counts: list[dict[str, float]] = [{"rows": writer.num_rows} for writer in writers]
    counts[0] |= {"quarantined": bad.num_rows} | split.rows.not_used() | parts | dict(split.compared)
    counts[1] |= split.held.not_used() if split.is_separate else {}
    return counts


def _write_rows(config: CorpusConfig, split: Split, train: ShardWriter, held: ShardWriter) -> dict[str, float]:
    """Writes the training and held-out rows; returns the counts of the parts, if there are several."""
    is_mix, used = bool(config.parts) or len(split.rows.shapes) > 1, Counter[str]()
    for table in split.rows.where(split.is_train):
        used.update(table[PART].to_pylist())
        train.add(with_categories(table, is_mix))
    for table in split.held.where(split.is_held):
        if not split.is_separate:
            used.update(table[PART].to_pylist())
        held.add(with_categories(table, is_mix and not split.is_separate))
    left_out = Counter(p for table in split.rows.where(split.is_left_out) for p in table[PART].to_pylist())
    return part_counts(used, left_out) if is_mix else {}


def _both(rows: pa.Table, seen: SeenRows) -> pa.Table:
    """Returns the rows of a held-out corpus whose prompts are also in the corpus as quarantined rows."""
    is_same = np.array([row_id in seen for row_id in rows["row_id"].to_pylist()], dtype=bool)
    reasons = pa.array(np.where(is_same, IN_BOTH_REASON, SAME_PROMPT_REASON).tolist(), pa.string())
    columns = [rows["source_file"], rows["source_line"], reasons, pa.array([""] * len(rows), pa.string())]
    return pa.table(columns, schema=QUARANTINE)


def _contaminated(rows: pa.Table, shared: list[Shared]) -> pa.Table:
    """Returns dropped rows with what they share."""
    found = [pa.array([getattr(each, name) for each in shared], pa.string()) for name in Shared._fields]
    return pa.table([*(rows[n] for n in ("row_id", "source_file", "source_line")), *found], schema=CONTAMINATED)
