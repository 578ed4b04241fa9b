"""Carrying top-10 distributions to another tokenizer, target tokens per second: batches of rows against one row at a time."""

import numpy as np
from transformers import AutoTokenizer

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals, transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.lab import assets_path
from profuser.lab.skills import draw_rows
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from tests.benchmarks.timing import Result, by_turns

K, NUM_ROWS = 10, 1200


def signals(ids, vocab_size, rng):
    scores = rng.normal(size=(len(ids.values), K)).astype(np.float32)
    logprobs = np.sort(scores - np.log(np.exp(scores).sum(1, keepdims=True)) - 0.1, axis=1)[:, ::-1]
    candidates = np.argsort(rng.random((len(ids.values), vocab_size)), axis=1)[:, :K]
    candidates[:, 0] = ids.values
    return SourceSignals(ids, np.ascontiguousarray(logprobs[:, 0]), TopK(candidates, np.ascontiguousarray(logprobs)))


def run():
    rng = np.random.default_rng(0)
    responses = [row.response for row in draw_rows("train", NUM_ROWS, seed=0)]
    tables, ids = {}, {}
    for name in ("mpt", "llama"):
        tokenizer = AutoTokenizer.from_pretrained(assets_path() / "sources" / name)
        tables[name] = TokenBytes.from_tokenizer(tokenizer, len(tokenizer))
        ids[name] = [np.array(tokenizer.encode(text, add_special_tokens=False)) for text in responses]
    projection = VocabProjection.build(tables["mpt"], tables["llama"])
    whole = signals(Ragged.from_rows(ids["mpt"]), tables["mpt"].vocab_size, rng)
    targets, texts = Ragged.from_rows(ids["llama"]), [text.encode() for text in responses]

    def batch():
        assert len(transport_rows(whole, targets, texts, projection).refused) == 0

    def one_by_one():
        for row, text in enumerate(texts):
            part = slice(whole.ids.offsets[row], whole.ids.offsets[row + 1])
            topk = TopK(whole.topk.ids[part], whole.topk.logprobs[part])
            one = SourceSignals(Ragged.from_rows([whole.ids.row(row)]), whole.logprobs[part], topk)
            transport_rows(one, Ragged.from_rows([targets.row(row)]), [text], projection)

    seconds = by_turns({"one row at a time": one_by_one, f"{NUM_ROWS} rows at once": batch})
    num = len(targets.values)
    return [Result(name, value, f"{num / value:,.0f}/s") for name, value in seconds.items()]
