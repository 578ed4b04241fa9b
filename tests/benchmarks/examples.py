"""Makes training examples with Alpaca's lengths, in the select artifact's schema, and updates of them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from profuser.artifacts.schemas import select_schema
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.schedule import ModeWeights
from profuser.signals.codec import TopK, to_columns
from profuser.training.batches import Update, UpdatePlan, read_packs
from profuser.training.examples import ExampleIndex, ExampleReader
from profuser.training.step import PackedExamples, collate

K = 10
BOTH = ({"until": 1.0, "inference": 1.0, "training": 1.0},)


def table(shard: int, num_rows: int, max_tokens: int, vocab_size: int) -> pa.Table:
    """Returns examples of both modes: log-normal lengths, median 31 prompt and 42 response tokens, some very long."""
    rng = np.random.default_rng(shard)
    records, topk = [], []
    for row in range(num_rows):
        prompt = rng.integers(0, vocab_size, int(np.clip(rng.lognormal(3.45, 0.45), 8, 128)))
        for mode in ("training", "inference"):
            size = int(np.clip(rng.lognormal(3.75, 1.15), 2, max_tokens - len(prompt)))
            logprobs = np.sort(rng.normal(-3, 1, (size, K)) - 2, axis=1)[:, ::-1]
            records.append(
                {
                    "row_id": f"{shard}-{row}",
                    "mode": mode,
                    "category": None,
                    "teacher": "a",
                    "sample": 0,
                    "advantages": [1.0],
                    "prompt_ids": prompt,
                    "response_ids": rng.integers(0, vocab_size, size),
                    "response_bytes": 4 * size,
                    "rules": np.ones(size, dtype=np.uint8),
                }
            )
            topk.append(TopK(rng.integers(0, vocab_size, (size, K)), logprobs))
    columns = {name: [record[name] for record in records] for name in records[0]} | to_columns("topk", topk, vocab_size)
    return pa.table(columns, schema=select_schema(vocab_size))


class Updates:
    """The first update of a run over such examples, packed and padded.

    Args:
        config: batch and packing.
        num_rows: number of rows, in one shard; enough for the update.
        vocab_size: size of the target's vocabulary.
    """

    def __init__(self, config: FuseConfig, num_rows: int, vocab_size: int):
        shard = table(0, num_rows, config.max_tokens, vocab_size)
        index = ExampleIndex.build([(0, shard)], config.max_tokens)
        self.reader = ExampleReader(lambda _: shard, K, vocab_size, config.max_tokens)
        self.plan = UpdatePlan(index, config, 0)
        self.update: Update = self.plan.update(0, 0, ModeWeights(1.0, 1.0))
        self.packed = list(read_packs(index, self.reader, self.plan.deal(self.update, 1, 0), 0))

    def padded(self, num_rows: int) -> Sequence[PackedExamples]:
        """Returns the same examples in random order, one per row, `num_rows` rows per micro-batch."""
        examples = [example for _, example in self.reader.read(self.plan.index, self.update.keys)]
        order = np.random.default_rng(0).permutation(len(examples))
        rows = [[examples[i]] for i in order]
        return [collate(rows[start : start + num_rows], 0, K) for start in range(0, len(rows), num_rows)]
