"""Measures what a source does with some rows of the corpus: tokens, seconds, and bytes of the files that the run would write.

Legend: N rows.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from profuser.artifacts.artifact import Artifact, shard_name
from profuser.artifacts.schemas import MODES, collect_schema, signals_schema
from profuser.corpus import Message, render_prompt
from profuser.engines.base import Reading, Response
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.signal_tables import collect_table, signals_table
from profuser.errors import UserError
from profuser.planning.estimates import FileSize, Probe
from profuser.storage.folder import Folder


def probe_rows(
    source: SourceReader, rows: pa.Table, how: Reading, top_k: int, collect: Artifact, signals: Artifact
) -> Probe:
    """Puts N rows to a source as its run would, all at once.

    Args:
        source: warm, so that its first steps are as fast as later ones.
        rows: of the corpus schema.
        how: with K = 0 signals are lazy, and the pass that fetches distributions is measured too.
        top_k: K of the distributions.
        collect: artifact of the source's signals; nothing is written to its folder.
        signals: the same of the distributions of lazy signals.

    Raises:
        UserError: the source refuses every row.
    """
    start = time.monotonic()
    found = source.read(rows, how)
    seconds = time.monotonic() - start
    taken = [entry for entry in found if entry.refused is None]
    if not taken:
        raise UserError(f"{collect.stage}: it takes none of the {len(found)} rows of the probe: {found[0].refused}")
    start = time.monotonic()
    full = taken if how.top_k else _go_back(source, rows, found, top_k)
    signals_seconds = 0.0 if how.top_k else time.monotonic() - start
    vocab_size = source.engine.vocab_size
    eager, lazy = (replace(collect, schema=collect_schema(vocab_size, with_topk)) for with_topk in (True, False))
    passed = replace(signals, schema=signals_schema(vocab_size))
    return Probe(
        prompt_tokens=np.array([_prompt(source, *pair) for pair in zip(rows.to_pylist(), found, strict=True)]),
        training_tokens=np.array([_training(entry) for entry in found]),
        inference_tokens=np.array([_inference(entry) for entry in found]),
        seconds=seconds,
        with_topk=_file_size(eager, lambda part: collect_table(part, vocab_size, top_k), full),
        without_topk=_file_size(lazy, lambda part: collect_table(part, vocab_size, 0), taken),
        distributions=_file_size(passed, lambda part: _signals(part, vocab_size), [_one_answer(e) for e in full]),
        signals_seconds=signals_seconds,
    )


def _go_back(source: SourceReader, rows: pa.Table, found: Sequence[RowSignals], top_k: int) -> list[RowSignals]:
    """The rows that were taken with their distributions, along the ground truth and one answer, from a second pass."""
    pairs = [pair for pair in zip(rows.to_pylist(), found, strict=True) if pair[1].refused is None]
    records, entries = zip(*pairs, strict=True)
    entries = [_one_answer(entry) for entry in entries]
    ids = [response.ids.tolist() for entry in entries for response in _responses(entry)]
    forced = iter(source.force([record for record in records for _ in MODES], ids, top_k))
    return [replace(entry, training=next(forced), answers=[next(forced)]) for entry in entries]


def _one_answer(entry: RowSignals) -> RowSignals:
    return replace(entry, answers=entry.answers[:1])


def _responses(entry: RowSignals) -> list[Response]:
    return [*([entry.training] if entry.training else []), *entry.answers]


def _signals(entries: Sequence[RowSignals], vocab_size: int) -> pa.Table:
    row_ids = [entry.row_id for entry in entries]
    modes = zip(MODES, zip(*map(_responses, entries), strict=True), strict=True)
    return pa.concat_tables([signals_table(row_ids, mode, responses, vocab_size) for mode, responses in modes])


def _file_size(
    artifact: Artifact, table: Callable[[Sequence[RowSignals]], pa.Table], entries: Sequence[RowSignals]
) -> FileSize:
    """Of an artifact's shards, from the file of the row with the fewest tokens and that of all rows."""
    parts = ([min(entries, key=_tokens)], entries)
    return FileSize.through(*((sum(map(_tokens, part)), _num_bytes(artifact, table(part))) for part in parts))


def _num_bytes(artifact: Artifact, table: pa.Table) -> int:
    with tempfile.TemporaryDirectory() as folder:
        aside = replace(artifact, folder=Folder.at(folder))
        aside.write_shard(0, table, {"rows": table.num_rows})
        return aside.folder.sizes()[shard_name(0)]


def _prompt(source: SourceReader, row: dict, entry: RowSignals) -> int:
    if entry.refused is not None:
        return 0
    messages = [Message(m["role"], m["content"]) for m in row["messages"]]
    return len(render_prompt(source.engine.tokenizer, messages, source.template))


def _training(entry: RowSignals) -> int:
    return len(entry.training.ids) if entry.training else 0


def _inference(entry: RowSignals) -> int:
    return sum(len(answer.ids) for answer in entry.answers)


def _tokens(entry: RowSignals) -> int:
    return _training(entry) + _inference(entry)
