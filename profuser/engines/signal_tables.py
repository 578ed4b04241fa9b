"""Converts a source's signals for a shard to tables and back: concatenated responses with their top-k distributions.

Legend: N rows (B1 = N + 1 offsets), M sources, S answers per source and row, K top-k.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Integer

from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.token_bytes import TokenBytes
from profuser.artifacts.schemas import ANSWER_VOCABULARY_SIZE, collect_schema, signals_schema
from profuser.engines.answer_vocabularies import join_vocabularies, merge_vocabularies
from profuser.engines.answers import UNREADABLE
from profuser.engines.base import Response, Usage
from profuser.engines.collecting import RowSignals
from profuser.signals.codec import RaggedTopK, TopK, from_columns, from_list_column, to_columns
from profuser.signals.ragged import Ragged, offsets_of


def collect_table(signals: Sequence[RowSignals], vocab_size: int, top_k: int, own_vocabulary: bool = False) -> pa.Table:
    """Returns signals as a table of the collect schema for this vocabulary; without top-k columns if `top_k` is 0."""
    joined = [join_vocabularies(s.answers) for s in signals] if own_vocabulary else []
    columns: dict[str, Any] = {
        "row_id": [s.row_id for s in signals],
        "refused": [s.refused for s in signals],
        "response_bytes": [s.response_bytes for s in signals],
        "training_nats": [None if s.training is None else nats(s.training) for s in signals],
        "inference_nats": [[None if a.is_unscored else nats(a) for a in s.answers] for s in signals],
        "answers": [s.texts for s in signals],
        "finish_reasons": [[answer.finish_reason for answer in s.answers] for s in signals],
        "answer_tokens": [[len(answer.ids) for answer in s.answers] for s in signals],
    }
    for mode, responses in (
        ("training", [[s.training] if s.training else [] for s in signals]),
        ("inference", [answers for _, answers in joined] or [s.answers for s in signals]),
    ):
        columns |= _response_columns(mode, responses, vocab_size, top_k)
    columns["answer_vocabulary"] = [vocabulary for vocabulary, _ in joined]
    return _table(columns, collect_schema(vocab_size, top_k > 0, own_vocabulary))


def signals_table(
    row_ids: Sequence[str],
    mode: str,
    responses: Sequence[Response],
    vocab_size: int,
    steps: NextSteps | None = None,
) -> pa.Table:
    """Returns one mode's teacher-forced responses, and the steps after used-up candidates, as a table of the signals schema."""
    columns: dict[str, Any] = {"row_id": list(row_ids), "mode": [mode] * len(row_ids)}
    columns |= _response_columns("response", [[r] for r in responses], vocab_size, max(1, responses[0].topk.top_k))
    if steps:
        columns |= _step_columns(steps, offsets_of(np.array([len(r.ids) for r in responses])), vocab_size)
    return _table(columns, signals_schema(vocab_size, with_steps=steps is not None))


def to_source_signals(responses: Sequence[Response]) -> SourceSignals:
    """Returns teacher-forced responses as rows of signals."""
    topk = RaggedTopK.from_rows([response.topk for response in responses]).topk
    logprobs = np.concatenate([response.logprobs for response in responses])
    return SourceSignals(Ragged.from_rows([response.ids for response in responses]), logprobs, topk)


def read_signals(table: pa.Table, prefix: str, samples: Sequence[int], vocab_size: int, top_k: int) -> SourceSignals:
    """Reads the distributions along one response of each row.

    Args:
        table: rows of the collect schema (`prefix` is the mode), or of the signals schema (`response`).
        prefix: prefix of the column names.
        samples: index of the answer to read, one per row; 0 for the ground truth.
        vocab_size: width of the source's logits.
        top_k: K of the table.
    """
    ids, logprobs = (from_list_column(table[f"{prefix}_{name}"]) for name in ("ids", "logprobs"))
    topk = from_columns(table, f"{prefix}_topk", top_k, vocab_size).topk
    bounds = _bounds(table, prefix, ids, samples)
    flat = np.concatenate([np.arange(*pair) for pair in bounds]) if bounds else np.zeros(0, dtype=np.int64)
    kept = Ragged.from_rows([ids.values[slice(*pair)] for pair in bounds], dtype=ids.values.dtype)
    steps = _read_steps(table, kept, vocab_size, top_k) if "step_positions" in table.column_names else None
    return SourceSignals(kept, logprobs.values[flat], TopK(topk.ids[flat], topk.logprobs[flat]), steps)


def read_answer_signals(table: pa.Table, samples: Sequence[int], top_k: int) -> tuple[SourceSignals, TokenBytes]:
    """Reads the distributions along one answer of each row, of a source without a tokenizer; arguments as in `read_signals`.

    Returns:
        The signals, and the table of their tokens: the vocabularies of the rows merged into one.
    """
    found = read_signals(table, "inference", samples, ANSWER_VOCABULARY_SIZE, top_k)
    tokens, merged = merge_vocabularies(table["answer_vocabulary"].to_pylist())
    firsts = np.repeat(merged.offsets[:-1], found.ids.lengths)
    ids = Ragged(merged.values[found.ids.values + firsts], found.ids.offsets)
    topk = TopK(merged.values[found.topk.ids + firsts[:, None]], found.topk.logprobs)
    return SourceSignals(ids, found.logprobs, topk), tokens


def read_own_ids(table: pa.Table, mode: str, samples: Sequence[int]) -> list[list[int]]:
    """Reads the tokens of one response of each row of the collect schema; arguments as in `read_signals`."""
    ids = from_list_column(table[f"{mode}_ids"])
    return [ids.values[slice(*pair)].tolist() for pair in _bounds(table, mode, ids, samples)]


def _bounds(table: pa.Table, prefix: str, ids: Ragged, samples: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the range of each row's response among all tokens."""
    if prefix != "inference":
        return list(zip(ids.offsets[:-1].tolist(), ids.offsets[1:].tolist(), strict=True))
    out = []
    for start, sizes, sample in zip(
        ids.offsets[:-1].tolist(), table["answer_tokens"].to_pylist(), samples, strict=True
    ):
        begin = start + sum(sizes[:sample])
        out.append((begin, begin + sizes[sample]))
    return out


def candidate_answers(tables: Sequence[pa.Table], num_samples: int) -> list[list[str | None]]:
    """Returns all answers to each row, source by source, `[N][M * S]`; None where a source has none, or one that is not text.

    Args:
        tables: one per source, with the same rows; only the column `answers` is read.
        num_samples: answers per row, S.
    """
    columns = [table["answers"].to_pylist() for table in tables]
    missing = [None] * num_samples
    return [[answer for answers in row for answer in answers or missing] for row in zip(*columns, strict=True)]


def count(signals: Sequence[RowSignals]) -> dict[str, float]:
    """Counts rows, refusals and tokens of a shard, for its metadata."""
    answers = [answer for s in signals for answer in s.answers]
    return {
        "rows": len(signals),
        "refused": sum(s.refused is not None for s in signals),
        "training_tokens": sum(len(s.training.ids) for s in signals if s.training),
        "inference_tokens": sum(s.answer_tokens for s in signals),
        "thinking_tokens": sum(s.thinking_tokens for s in signals),
        "unreadable_answers": sum(text is None for s in signals for text in s.texts),
        **unreadable(signals),
        "cut_answers": sum(answer.finish_reason == "length" for answer in answers),
        **served(signals),
    }


def served(signals: Sequence[RowSignals]) -> dict[str, float]:
    """Counts what a server counted, and the answers of which it gave no distributions; nothing for an engine of the run."""
    usage = sum((s.usage for s in signals if s.usage), Usage())
    unscored = sum(answer.is_unscored for s in signals for answer in s.answers)
    return usage.counts | ({"unscored_answers": unscored} if unscored else {})


def unreadable(signals: Sequence[RowSignals]) -> dict[str, float]:
    """Counts the answers without text by reason, for a shard's metadata."""
    reasons = [reason for s in signals for reason in s.unreadable if reason]
    return {f"unreadable/{reason}": reasons.count(reason) for reason in UNREADABLE if reason in reasons}


def nats(response: Response) -> float:
    """Returns a response's negative log-likelihood in nats, summed in float64: in half precision, sums of two sources could tie."""
    return float(-response.logprobs.astype(np.float64).sum())


def _response_columns(
    prefix: str, rows: Sequence[Sequence[Response]], vocab_size: int, top_k: int
) -> dict[str, pa.Array | list]:
    """Returns the columns of each row's concatenated responses."""
    none = np.zeros(0, dtype=np.int64)
    columns: dict[str, Any] = {
        f"{prefix}_ids": [np.concatenate([r.ids for r in row]) if row else none for row in rows],
        f"{prefix}_logprobs": [
            np.concatenate([r.logprobs for r in row]).astype(np.float16) if row else none for row in rows
        ],
    }
    if top_k:
        columns |= to_columns(f"{prefix}_topk", [_joined([r.topk for r in row], top_k) for row in rows], vocab_size)
    return columns


def _step_columns(steps: NextSteps, offsets: Integer[np.ndarray, "B1"], vocab_size: int) -> dict[str, pa.Array | list]:
    """Returns the columns of each row's steps; `offsets` are those of the rows' tokens."""
    bounds = np.searchsorted(steps.positions, offsets)
    rows = Ragged(steps.positions, bounds).row_of
    positions, candidates = (Ragged(each, bounds) for each in (steps.positions - offsets[rows], steps.candidates))
    return {
        "step_positions": [positions.row(row) for row in range(len(positions))],
        "step_candidates": [candidates.row(row) for row in range(len(candidates))],
        **to_columns("step_topk", RaggedTopK(steps.topk, bounds), vocab_size),
    }


def _read_steps(table: pa.Table, ids: Ragged, vocab_size: int, top_k: int) -> NextSteps:
    """Reads the steps after used-up candidates of all rows, whose tokens are `ids`."""
    positions = from_list_column(table["step_positions"])
    candidates = from_list_column(table["step_candidates"]).values.astype(np.int64)
    topk = from_columns(table, "step_topk", top_k, vocab_size).topk
    return NextSteps(positions.values + ids.offsets[positions.row_of], candidates, topk)


def _joined(parts: Sequence[TopK], top_k: int) -> TopK:
    if not parts:
        return TopK(np.zeros((0, top_k), np.int32), np.zeros((0, top_k), np.float32))
    if len(parts) == 1:
        return parts[0]
    return TopK(np.concatenate([part.ids for part in parts]), np.concatenate([part.logprobs for part in parts]))


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({f.name: _array(columns[f.name], f.type) for f in schema}, schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, type=kind)
