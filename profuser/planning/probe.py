"""Measures a source on some rows of the corpus: tokens, seconds, and bytes of the files that the run would write.

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
from profuser.engines.base import ReadSettings, Response
from profuser.engines.collecting import RowSignals, SourceReader
from profuser.engines.signal_tables import collect_table, signals_table
from profuser.errors import UserError
from profuser.planning.engine_check import ScoredRow, scored_rows
from profuser.planning.estimates import FileSize, Probe
from profuser.recipe.endpoints import TokenCost
from profuser.storage.folder import Folder


def probe_rows(
    source: SourceReader,
    rows: pa.Table,
    how: ReadSettings,
    top_k: int,
    collect: Artifact,
    signals: Artifact,
    token_cost: TokenCost | None = None,
) -> tuple[Probe, list[ScoredRow]]:
    """Sends N rows to a source as its run would, all at once.

    Args:
        source: already warm, so that its first steps are as fast as later ones.
        rows: table of the corpus schema.
        how: with K = 0 signals are lazy, and the pass that fetches distributions is measured too.
        top_k: K of the distributions.
        collect: artifact of the source's signals; nothing is written to its folder.
        signals: artifact of the lazy signals' distributions; nothing is written to its folder.
        token_cost: price of an endpoint's tokens.

    Returns:
        The probe, and some rows to compare the engine on.

    Raises:
        UserError: the source refuses every row.
    """
    start = time.monotonic()
    results = source.read(rows, how)
    seconds = time.monotonic() - start
    accepted = [entry for entry in results if entry.refused is None]
    if not accepted:
        raise UserError(
            f"{collect.stage}: the source refuses all {len(results)} rows of the probe: {results[0].refused}"
        )
    start = time.monotonic()
    full = accepted if how.top_k else _fetch_distributions(source, rows, results, top_k)
    signals_seconds = 0.0 if how.top_k else time.monotonic() - start
    vocab_size, own = source.engine.vocab_size, source.own_vocabularies
    eager, lazy = (replace(collect, schema=collect_schema(vocab_size, with_topk, own)) for with_topk in (True, False))
    distributions = replace(signals, schema=signals_schema(vocab_size))
    prompts = [_prompt_ids(source, *pair) for pair in zip(rows.to_pylist(), results, strict=True)]
    probe = Probe(
        prompt_tokens=np.array([_prompt_tokens(*pair) for pair in zip(prompts, results, strict=True)]),
        training_tokens=np.array([_training_tokens(entry) for entry in results]),
        inference_tokens=np.array([entry.answer_tokens for entry in results]),
        seconds=seconds,
        with_topk=_file_size(eager, lambda part: collect_table(part, vocab_size, top_k, own), full),
        without_topk=_file_size(lazy, lambda part: collect_table(part, vocab_size, 0, own), accepted),
        distributions=_file_size(
            distributions, lambda part: _signals(part, vocab_size), [_one_answer(e) for e in full]
        ),
        signals_seconds=signals_seconds,
        token_money=token_cost and np.array([_money(entry, token_cost) for entry in results]),
    )
    return probe, scored_rows(source, prompts, results)


def _fetch_distributions(
    source: SourceReader, rows: pa.Table, results: Sequence[RowSignals], top_k: int
) -> list[RowSignals]:
    """Returns the accepted rows with distributions over the ground truth and one answer, from a second pass."""
    pairs = [pair for pair in zip(rows.to_pylist(), results, strict=True) if pair[1].refused is None]
    records, entries = zip(*pairs, strict=True)
    entries = [_one_answer(entry) for entry in entries]
    ids = [response.ids.tolist() for entry in entries for response in _responses(entry)]
    owners = [record for record, entry in zip(records, entries, strict=True) for _ in _responses(entry)]
    forced = iter(source.force(owners, ids, top_k))
    return [
        replace(entry, training=next(forced) if entry.training else None, answers=[next(forced)]) for entry in entries
    ]


def _one_answer(entry: RowSignals) -> RowSignals:
    return replace(entry, answers=entry.answers[:1])


def _responses(entry: RowSignals) -> list[Response]:
    return [*([entry.training] if entry.training else []), *entry.answers]


def _signals(entries: Sequence[RowSignals], vocab_size: int) -> pa.Table:
    row_ids = [entry.row_id for entry in entries]
    by_mode = [*zip(*map(_responses, entries), strict=True)]
    modes = zip(MODES[-len(by_mode) :], by_mode, strict=True)
    return pa.concat_tables([signals_table(row_ids, mode, responses, vocab_size) for mode, responses in modes])


def _file_size(
    artifact: Artifact, table: Callable[[Sequence[RowSignals]], pa.Table], entries: Sequence[RowSignals]
) -> FileSize:
    """Returns the size model of an artifact's shards, from a file with the shortest row and a file with all rows."""
    parts = ([min(entries, key=_num_tokens)], entries)
    return FileSize.through(*((sum(map(_num_tokens, part)), _num_bytes(artifact, table(part))) for part in parts))


def _num_bytes(artifact: Artifact, table: pa.Table) -> int:
    with tempfile.TemporaryDirectory() as folder:
        scratch = replace(artifact, folder=Folder.at(folder))
        scratch.write_shard(0, table, {"rows": table.num_rows})
        return scratch.folder.sizes()[shard_name(0)]


def _prompt_ids(source: SourceReader, row: dict, entry: RowSignals) -> list[int]:
    """Returns the token ids of a row's prompt; none if the source refused it."""
    if entry.refused is not None:
        return []
    messages = [Message(m["role"], m["content"]) for m in row["messages"]]
    return render_prompt(source.engine.tokenizer, messages, source.template)


def _money(entry: RowSignals, cost: TokenCost) -> float:
    return cost.money(entry.usage.input_tokens, entry.usage.output_tokens) if entry.usage else 0.0


def _training_tokens(entry: RowSignals) -> int:
    return len(entry.training.ids) if entry.training else 0


def _prompt_tokens(ids: list[int], entry: RowSignals) -> int:
    """Returns the tokens of a prompt; by the server's count if the tokenizer is not known."""
    return round(entry.usage.input_tokens / len(entry.answers)) if entry.in_bytes and entry.usage and ids else len(ids)


def _num_tokens(entry: RowSignals) -> int:
    return _training_tokens(entry) + entry.answer_tokens
