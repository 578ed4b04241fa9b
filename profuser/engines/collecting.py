"""What one source says of a shard of the corpus: both modes of every row, from one batch of engine requests.

Training mode: the ground truth, teacher-forced. Inference mode: the source's own answer, whose distributions come from the very
pass that generated it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import EncodedExample, Message, encode_example
from profuser.engines.base import Request, Response, SourceEngine
from profuser.recipe.models import GenerationConfig, TemplateConfig
from profuser.schemas import MODES, collect_schema
from profuser.signals.codec import TopK, to_columns

LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, at most."""


@dataclass
class RowSignals:
    """What a source says of one row; a mode that there is nothing of is None."""

    row_id: str
    response_bytes: int
    refused: str | None = None
    training: Response | None = None
    inference: Response | None = None
    inference_text: str | None = None


@dataclass(frozen=True)
class SourceReader:
    """An engine with what is needed to put rows to it."""

    engine: SourceEngine
    template: TemplateConfig
    tokens: TokenBytes = field(init=False)

    def __post_init__(self) -> None:
        """Reads the tokenizer's bytes; AlignmentError where it cannot be expressed in bytes."""
        ends = getattr(self.engine, "end_ids", ())
        object.__setattr__(
            self, "tokens", TokenBytes.from_tokenizer(self.engine.tokenizer, self.engine.vocab_size, ends)
        )

    def read(self, rows: pa.Table, generation: GenerationConfig, top_k: int, seed: int) -> list[RowSignals]:
        """Puts all rows of a corpus shard to the source.

        Args:
            rows: a table of the corpus schema.
            generation: how answers are sampled.
            top_k: log-probabilities per position.
            seed: of the sampling.

        Returns:
            One entry per row, in order; a row that does not fit into the source's context is refused with the reason.
        """
        signals, requests, owners = [], [], []
        for row in rows.to_pylist():
            entry = RowSignals(row["row_id"], len(row["response"].encode()))
            signals.append(entry)
            messages = [Message(m["role"], m["content"]) for m in row["messages"]]
            encoded = encode_example(self.engine.tokenizer, messages, row["response"], self.template)
            entry.refused = self._refusal(encoded)
            if entry.refused is None:
                room = self.engine.max_model_len - len(encoded.prompt_ids)
                requests.append(Request(encoded.prompt_ids, encoded.response_ids))
                requests.append(Request(encoded.prompt_ids, max_tokens=min(generation.max_tokens, room)))
                owners.append(entry)
        responses = self.engine.run(requests, generation, top_k, seed) if requests else []
        for entry, training, inference in zip(owners, responses[::2], responses[1::2], strict=True):
            entry.training, entry.inference = training, self.whole(inference)
            entry.inference_text = self.text(entry.inference)
        return signals

    def _refusal(self, encoded: EncodedExample) -> str | None:
        total, limit = len(encoded.prompt_ids) + len(encoded.response_ids), self.engine.max_model_len
        if total >= limit:
            return f"prompt and response are {total} tokens; this source takes fewer than {limit}"
        return None

    def whole(self, response: Response) -> Response:
        """An answer without the tokens of its last character, where the limit of length has cut it inside that."""
        for dropped in range(LONGEST_CHARACTER if response.finish_reason == "length" else 0):
            kept = slice(0, max(0, len(response.ids) - dropped))
            if _decoded(self._spelt(response.ids[kept])) is not None:
                return replace(
                    response, ids=response.ids[kept], logprobs=response.logprobs[kept], topk=response.topk[kept]
                )
        return response

    def text(self, response: Response) -> str | None:
        """The answer's text from its tokens' bytes; None where it is blank or its bytes are no UTF-8."""
        text = _decoded(self._spelt(response.ids))
        return text.removeprefix(" ") if text and text.strip() else None

    def _spelt(self, ids: Int[np.ndarray, "T"]) -> bytes:
        return b"".join(self.tokens[int(token)] or b"" for token in ids)


def _decoded(spelt: bytes) -> str | None:
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return None


def collect_table(signals: list[RowSignals], vocab_size: int, top_k: int) -> pa.Table:
    """Signals as a table of the collect schema for this vocabulary."""
    columns: dict[str, Any] = {
        "row_id": [s.row_id for s in signals],
        "refused": [s.refused for s in signals],
        "response_bytes": [s.response_bytes for s in signals],
        "training_nats": [_nats(s.training) for s in signals],
        "inference_nats": [_nats(s.inference) for s in signals],
        "inference_text": [s.inference_text for s in signals],
        "finish_reason": [s.inference.finish_reason if s.inference else None for s in signals],
    }
    empty = TopK(np.zeros((0, top_k), np.int64), np.zeros((0, top_k), np.float32))
    for mode in MODES:
        responses: list[Response | None] = [getattr(s, mode) for s in signals]
        columns[f"{mode}_ids"] = [r.ids if r else None for r in responses]
        columns[f"{mode}_logprobs"] = [r.logprobs.astype(np.float16) if r else None for r in responses]
        columns |= to_columns(f"{mode}_topk", [r.topk if r else empty for r in responses], vocab_size)
    schema = collect_schema(vocab_size)
    return pa.table({f.name: _array(columns[f.name], f.type) for f in schema}, schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, type=kind)


def _nats(response: Response | None) -> float | None:
    """Negative log-likelihood of a response in float64: cross-entropies that are summed in half precision would tie."""
    return None if response is None else float(-response.logprobs.astype(np.float64).sum())


def count(signals: list[RowSignals]) -> dict[str, float]:
    """Rows, refusals and tokens of a shard, for its metadata."""
    return {
        "rows": len(signals),
        "refused": sum(s.refused is not None for s in signals),
        "training_tokens": sum(len(s.training.ids) for s in signals if s.training),
        "inference_tokens": sum(len(s.inference.ids) for s in signals if s.inference),
        "unreadable_answers": sum(s.inference is not None and s.inference_text is None for s in signals),
        "cut_answers": sum(s.inference is not None and s.inference.finish_reason == "length" for s in signals),
    }
