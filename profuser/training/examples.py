"""Training examples as they lie in the select artifact, and their order: which rows make up which update.

Everything about an update follows from its number: a restarted run needs to remember nothing but the step it had reached.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from profuser.errors import ArtifactError
from profuser.recipe.fusing import Epochs, FuseConfig
from profuser.schedule import ModeWeights, weights_at
from profuser.schemas import MODES
from profuser.signals.codec import TopK, from_columns, from_list_column


@dataclass(frozen=True)
class Example:
    """One mode of one corpus row, in the target's tokens. T response tokens, K top-k."""

    row_id: str
    mode: str
    teacher: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    topk: TopK

    @property
    def num_tokens(self) -> int:
        """Prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


class ExampleStore:
    """All examples of a run, by row and mode, each cut to `max_tokens`.

    Args:
        tables: shards of the select artifact.
        top_k: K of its distributions.
        vocab_size: width of the target's logits.
        max_tokens: longest example, prompt and response.

    Raises:
        ArtifactError: there is no example, or the distributions are of another K.
    """

    def __init__(self, tables: Iterable[pa.Table], top_k: int, vocab_size: int, max_tokens: int):
        self.examples: list[Example] = []
        self.num_cut = 0
        for table in tables:
            self._add(table, top_k, vocab_size, max_tokens)
        if not self.examples:
            raise ArtifactError("the select artifact holds no training example: every row was refused or skipped")
        self.row_ids = sorted({example.row_id for example in self.examples})
        self._by_key = {(example.row_id, example.mode): index for index, example in enumerate(self.examples)}

    def _add(self, table: pa.Table, top_k: int, vocab_size: int, max_tokens: int) -> None:
        topk = from_columns(table, "topk", top_k, vocab_size)
        prompts, responses = (
            from_list_column(table[name].cast(pa.list_(pa.int64()))) for name in ("prompt_ids", "response_ids")
        )
        names = [table[name].to_pylist() for name in ("row_id", "mode", "teacher")]
        for index, (row_id, mode, teacher) in enumerate(zip(*names, strict=True)):
            prompt, response = prompts.row(index), responses.row(index)
            num = min(len(response), max_tokens - len(prompt))
            self.num_cut += num < len(response)
            if num > 0:
                kept = topk.row(index)[:num]
                self.examples.append(Example(row_id, mode, teacher, prompt, response[:num], kept))

    def find(self, row_ids: Sequence[str], mode: str) -> list[int]:
        """Indices of the examples of these rows in this mode; a row without one is passed over."""
        return [self._by_key[row, mode] for row in row_ids if (row, mode) in self._by_key]


@dataclass(frozen=True)
class Update:
    """What one update of the target learns from."""

    step: int
    weights: ModeWeights
    num_tokens: dict[str, int]
    """Response tokens of the whole batch, per mode: the denominators of the loss."""
    micro_batches: list[list[int]]
    """Example indices that this worker runs, one list per forward pass; every worker has as many lists."""


class UpdatePlan:
    """Which examples make up each update, for one worker of several."""

    def __init__(self, store: ExampleStore, config: FuseConfig, seed: int, world_size: int = 1, rank: int = 0):
        self.store, self.config, self.seed = store, config, seed
        self.world_size, self.rank = world_size, rank
        self.num_steps = count_steps(config, len(store.row_ids))

    def rows(self, step: int) -> list[str]:
        """Ids of the rows of an update. Epochs follow on each other without a gap, each in an order of its own."""
        size, num_rows = self.config.batch_rows, len(self.store.row_ids)
        positions = range(step * size, (step + 1) * size)
        orders = {e: self._order(e) for e in {p // num_rows for p in positions}}
        return [self.store.row_ids[orders[p // num_rows][p % num_rows]] for p in positions]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.store.row_ids))

    def update(self, step: int) -> Update:
        """The update of this number; a mode with zero weight is not in it."""
        weights = weights_at(self.config.schedule, step / self.num_steps)
        rows = self.rows(step)
        per_mode = {mode: self.store.find(rows, mode) if getattr(weights, mode) > 0 else [] for mode in MODES}
        num_tokens = {
            mode: sum(len(self.store.examples[i].response_ids) for i in indices) for mode, indices in per_mode.items()
        }
        batches = self._cut([i for indices in per_mode.values() for i in indices])
        return Update(step, weights, num_tokens, batches[self.rank :: self.world_size])

    def _cut(self, indices: list[int]) -> list[list[int]]:
        """Micro-batches of examples of like length within the token budget, as many for every worker (some may be empty)."""
        batches: list[list[int]] = []
        for index in sorted(indices, key=lambda i: (-self.store.examples[i].num_tokens, i)):
            width = self.store.examples[batches[-1][0]].num_tokens if batches else 0
            if not batches or width * (len(batches[-1]) + 1) > self.config.micro_batch_tokens:
                batches.append([])
            batches[-1].append(index)
        while not batches or len(batches) % self.world_size:
            largest = max(batches, key=len, default=[])
            half = len(largest) // 2
            batches.append(largest[half:] if half else [])
            del largest[half or len(largest) :]
        return batches


def count_steps(config: FuseConfig, num_rows: int) -> int:
    """Updates of a run over so many rows: as configured, or enough for the epochs."""
    if isinstance(config.duration, Epochs):
        return max(1, math.ceil(config.duration.value * num_rows / config.batch_rows))
    return config.duration.value
