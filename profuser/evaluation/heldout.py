"""Scores held-out rows under one model: bits per byte of the ground truth, and exact match of the final answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.artifacts.schemas import EVALUATE
from profuser.corpus.thinking import without_thinking
from profuser.engines.collecting import RowSignals
from profuser.engines.signal_tables import nats
from profuser.rewards.verifiers import exact_match
from profuser.selection.advantage import bits_per_byte
from profuser.signals.ragged import Ragged

ALL = "all"
"""Category of all held-out rows."""


def evaluate_table(
    rows: pa.Table,
    signals: Sequence[RowSignals],
    tokens: TokenBytes,
    answer_pattern: str | None,
    keeps_thinking: bool = False,
) -> pa.Table:
    """Scores a shard of held-out rows from a model's signals. Refuses a row whose tokens do not spell its text.

    Args:
        rows: a table of the corpus schema.
        signals: the model's signals for the same rows, in order.
        tokens: token bytes of the model's tokenizer.
        answer_pattern: see `final_answer`.
        keeps_thinking: whether the answers hold thinking, which is left out of predictions.
    """
    records = []
    wrong = _misspelt(rows, signals, tokens)
    for place, (row, signal) in enumerate(zip(rows.to_pylist(), signals, strict=True)):
        reason = signal.refused or wrong.get(place)
        refused = reason is not None
        text = signal.texts[0] if signal.texts else None
        text = without_thinking(text, inside=True) if text and keeps_thinking else text
        truth = without_thinking(row["response"])
        records.append(
            {
                "row_id": row["row_id"],
                "category": row["category"],
                "refused": reason,
                "prediction": text,
                "correct": None if refused else exact_match(text, truth, answer_pattern),
                "nats": nats(signal.training) if signal.training and not refused else None,
                "response_bytes": signal.response_bytes,
            }
        )
    return pa.Table.from_pylist(records, schema=EVALUATE)


def _misspelt(rows: pa.Table, signals: Sequence[RowSignals], tokens: TokenBytes) -> dict[int, str]:
    """Returns the rows whose ground truth was scored on tokens that do not spell it, with the reason."""
    scored = [(place, signal.training) for place, signal in enumerate(signals) if signal.training]
    ids = Ragged.from_rows([response.ids for _, response in scored], dtype=np.int64)
    texts = rows["response"].to_pylist()
    wrong = misspelt(tokens, ids, [texts[place].encode() for place, _ in scored])
    return {scored[place][0]: reason for place, reason in wrong.items()}


@dataclass(frozen=True)
class Score:
    """Score of a model on a set of held-out rows."""

    num_rows: int
    bits_per_byte: float
    """Total over all bytes of the set; comparable between tokenizers."""
    exact_match: float
    """Share of rows, 0 to 1."""


def score(table: pa.Table, row_ids: set[str]) -> Score:
    """Returns a model's score on the given rows of its evaluate table. Compared models must use the same rows."""
    records = [
        r for r in table.select(["row_id", "nats", "response_bytes", "correct"]).to_pylist() if r["row_id"] in row_ids
    ]
    if not records:
        return Score(0, float("nan"), float("nan"))
    # A model that cannot teacher-force has none.
    nats = np.array(sum(np.nan if r["nats"] is None else r["nats"] for r in records))
    return Score(
        num_rows=len(records),
        bits_per_byte=float(bits_per_byte(nats, np.array(sum(r["response_bytes"] for r in records)))),
        exact_match=sum(bool(r["correct"]) for r in records) / len(records),
    )


def common_rows(tables: Mapping[str, pa.Table]) -> dict[str, set[str]]:
    """Returns the rows that every model accepted, by category, and all of them under `all`."""
    kept: set[str] | None = None
    for table in tables.values():
        known = {r["row_id"] for r in table.select(["row_id", "refused"]).to_pylist() if r["refused"] is None}
        kept = known if kept is None else kept & known
    out: dict[str, set[str]] = {ALL: kept or set()}
    first = next(iter(tables.values()))
    for record in first.select(["row_id", "category"]).to_pylist():
        if record["category"] is not None and record["row_id"] in out[ALL]:
            out.setdefault(record["category"], set()).add(record["row_id"])
    return out


def scores(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, Score]]:
    """Returns every model's score on all common rows and on each category: `{category: {model: score}}`."""
    groups = common_rows(tables)
    return {group: {name: score(table, ids) for name, table in tables.items()} for group, ids in groups.items()}
