"""Makes texts and synthetic signals over them, for benchmarks of transport."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals
from profuser.lab.skills import draw_rows
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged

K = 10
ALPACA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_5000.json"


class Side(NamedTuple):
    tokenizer: Any
    tokens: TokenBytes

    def encode(self, texts: list[str]) -> Ragged:
        return Ragged.from_rows([self.tokenizer.encode(text, add_special_tokens=False) for text in texts], np.int64)


def responses() -> list[str]:
    """Returns Alpaca's answers if its file exists, else the laboratory's."""
    if ALPACA.exists():
        return [text for row in json.loads(ALPACA.read_text())[:4000] if (text := row["output"].strip())]
    return [row.response for row in draw_rows("train", 4000, seed=0)]


def signals(ids: Ragged, k: int = K) -> SourceSignals:
    """Draws K candidates by token frequency, the realised one first or second, as for a fair model."""
    rng = np.random.default_rng(0)
    num = len(ids.values)
    scores = rng.gumbel(size=(num, k)) * 2
    logprobs = np.sort(scores - np.log(np.exp(scores).sum(1, keepdims=True)) - 0.1, axis=1)[:, ::-1].astype(np.float16)
    candidates = ids.values[rng.integers(0, num, (num, k))].astype(np.uint16)
    place = rng.integers(0, 2, num)
    candidates[np.arange(num), place] = ids.values
    return SourceSignals(ids, logprobs[np.arange(num), place], TopK(candidates, np.ascontiguousarray(logprobs)))
