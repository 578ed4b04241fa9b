"""Assigns examples to updates, packs them, and distributes them to workers.

Everything follows from the seed, the schedule and the position in the stream of rows (the *cursor*): a restarted run needs no other
state, and a run with another number of workers makes the same updates. Legend: R training rows of the index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from profuser.artifacts.schemas import MODES
from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig, count_steps
from profuser.recipe.schedule import ModeWeights, Schedule, SchedulePiece, Weights
from profuser.training.examples import ExampleIndex, ExampleReader
from profuser.training.step import PackedExamples, collate

Key = tuple[int, int]
"""An example: row of the index, and index into `MODES`."""
Pack = list[Key]
"""Examples concatenated in one sequence."""


@dataclass(frozen=True)
class Update:
    """The training data of one update of the target."""

    step: int
    cursor: int
    """Rows of the stream consumed before this update."""
    end: int
    """Rows of the stream consumed after it."""
    weights: ModeWeights
    num_tokens: tuple[int, ...]
    """Response tokens of the whole batch, per mode."""
    weighted_tokens: tuple[float, ...]
    """The same, weighted by example: the denominators of the loss."""
    sequence_tokens: int
    """Prompt and response tokens of the whole batch."""
    keys: list[Key]
    """Examples of the update."""


class UpdatePlan:
    """The updates of a run. Rows are streamed epoch after epoch without a gap, each epoch in its own order.

    An epoch reads its shards in random order and shuffles rows within windows of `shuffle_rows`, so that shards are read
    sequentially.

    Args:
        index: all examples.
        config: batch, duration and packing.
        seed: seed of the order, and of the choice of validation rows.

    Raises:
        TrainingError: at some point of the schedule no row has an example in the trained modes, or the examples of one row are
            longer than a whole batch.
    """

    def __init__(self, index: ExampleIndex, config: FuseConfig, seed: int):
        self.index, self.config, self.seed = index, config, seed
        self.rows, self.validation = index.split(config.validation_rows, seed)
        self.num_steps = count_steps(config, int(index.tokens[self.rows].sum()))
        self._epoch = lru_cache(maxsize=2)(self._order)
        self._sizes = lru_cache(self._sizes_of)
        for piece in config.schedule:
            # A moving piece starts with its own weights only; after that both ends contribute.
            for ends in ((piece,), (piece, piece.to or piece)):
                self._sizes(_modes(*ends))

    def __reduce__(self) -> tuple[Any, ...]:
        """Drops the cached orders and sizes, which are recomputed elsewhere."""
        return UpdatePlan, (self.index, self.config, self.seed)

    def update(self, step: int, cursor: int, weights: ModeWeights) -> Update:
        """Returns the update of the next rows whose tokens fit in the batch, without modes of zero weight."""
        modes = _modes(weights)
        sizes = self._sizes(modes)
        taken: list[int] = []
        size, end = 0, cursor
        while size + sizes[row := self._row(end)] <= self.config.batch_tokens:
            taken.append(row)
            size += int(sizes[row])
            end += 1
        keys = [(row, mode) for row in taken for mode in modes if self.index.tokens[row, mode]]
        responses = self.index.responses[taken] * [mode in modes for mode in range(len(MODES))]
        num_tokens = tuple(int(n) for n in responses.sum(axis=0))
        weighted = tuple(float(n) for n in (responses * self.index.weights[taken]).sum(axis=0))
        return Update(step, cursor, end, weights, num_tokens, weighted, size, keys)

    def window_end(self, cursor: int) -> int:
        """Returns the end of the shuffled window, in the stream, that contains this position."""
        epoch, place = divmod(cursor, len(self.rows))
        ends = self._epoch(epoch)[1]
        return epoch * len(self.rows) + int(ends[np.searchsorted(ends, place, side="right")])

    def deal(self, update: Update, world_size: int, rank: int) -> list[list[Pack]]:
        """Returns one worker's micro-batches; every worker has equally many (some may be empty)."""
        return self._deal(update.keys, world_size, rank)

    def deal_validation(self, world_size: int, rank: int) -> list[list[Pack]]:
        """Returns one worker's micro-batches of the validation rows, both modes."""
        keys = [
            (int(row), mode) for row in self.validation for mode in range(len(MODES)) if self.index.tokens[row, mode]
        ]
        return self._deal(keys, world_size, rank) if keys else []

    def _deal(self, keys: Sequence[Key], world_size: int, rank: int) -> list[list[Pack]]:
        lengths = {key: int(self.index.tokens[key]) for key in keys}
        packs = pack(lengths, self.config.max_tokens) if self.config.packing else [[key] for key in lengths]
        widths = [sum(lengths[key] for key in each) for each in packs]
        return micro_batches(packs, widths, self.config.micro_batch_tokens, world_size)[rank::world_size]

    def _row(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.rows))
        return int(self._epoch(epoch)[0][offset])

    def _order(self, epoch: int) -> tuple[Int[np.ndarray, "R"], Int[np.ndarray, "windows"]]:
        """Returns an epoch's rows in order, and the ends of its windows."""
        rng = np.random.default_rng([self.seed, epoch])
        shards, sizes = np.unique(self.index.shards[self.rows], return_counts=True)
        parts = np.split(self.rows, np.cumsum(sizes)[:-1])
        windows: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for shard in rng.permutation(len(shards)):
            waiting.append(parts[shard])
            if sum(map(len, waiting)) >= self.config.shuffle_rows:
                windows.append(rng.permutation(np.concatenate(waiting)))
                waiting = []
        if waiting:
            windows.append(rng.permutation(np.concatenate(waiting)))
        return np.concatenate(windows), np.cumsum([len(window) for window in windows])

    def _sizes_of(self, modes: tuple[int, ...]) -> Int[np.ndarray, "all"]:
        """Returns the tokens of every row of the index in these modes."""
        sizes = self.index.tokens[:, modes].sum(axis=1)
        if not sizes[self.rows].any():
            raise TrainingError(
                f"fuse: no example in the mode that the schedule trains ({' and '.join(MODES[mode] for mode in modes)}); check "
                "select's counts: if verifiers accepted no answer, lower their accept_above, or set it to null to reject none"
            )
        if sizes[self.rows].max() > self.config.batch_tokens:
            raise TrainingError(
                f"fuse.batch_tokens: {self.config.batch_tokens:,} is less than the examples of one row "
                f"({sizes[self.rows].max():,} tokens); raise it, or lower fuse.max_tokens"
            )
        return sizes


def _modes(*weights: ModeWeights | Weights | SchedulePiece) -> tuple[int, ...]:
    """Returns the modes (indices into `MODES`) to which at least one of these gives weight."""
    return tuple(place for place, mode in enumerate(MODES) if any(getattr(each, mode) > 0 for each in weights))


def pack(lengths: dict[Any, int], capacity: int) -> list[list[Any]]:
    """Packs into bins of at most `capacity` tokens by first fit decreasing: at most 11/9 of the fewest bins possible, plus 1."""
    bins: list[list[Any]] = []
    room: list[int] = []
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        place = next((place for place, left in enumerate(room) if left >= lengths[key]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(key)
        room[place] -= lengths[key]
    return bins


def micro_batches(packs: Sequence[Pack], widths: Sequence[int], max_tokens: int, world_size: int) -> list[list[Pack]]:
    """Groups packs of similar width within the token budget; the count is a multiple of the workers (some may be empty)."""
    batches: list[list[Pack]] = []
    width = 0
    for place in sorted(range(len(packs)), key=lambda place: (-widths[place], place)):
        if not batches or width * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            width = widths[place]
        batches[-1].append(packs[place])
    while not batches or len(batches) % world_size:
        largest = max(batches, key=len, default=[])
        half = len(largest) // 2
        batches.append(largest[half:] if half else [])
        del largest[half or len(largest) :]
    return batches


def windows_from(plan: UpdatePlan, schedule: Schedule, step: int, cursor: int) -> Iterator[list[Update]]:
    """Yields the remaining updates, by the window of rows in which each starts, under the weights known so far."""
    window: list[Update] = []
    end = 0
    for number in range(step, plan.num_steps):
        update = plan.update(number, cursor, schedule.weights(number))
        if window and cursor >= end:
            yield window
            window = []
        if not window:
            end = plan.window_end(cursor)
        window.append(update)
        cursor = update.end
    if window:
        yield window


def read_updates(
    plan: UpdatePlan, reader: ExampleReader, updates: Sequence[Update], world_size: int, rank: int, pad_id: int
) -> Iterator[tuple[Update, list[PackedExamples]]]:
    """Yields one worker's micro-batches of the updates of a window. Only its own examples are kept in memory."""
    dealt = [plan.deal(update, world_size, rank) for update in updates]
    read = read_packs(plan.index, reader, [batch for batches in dealt for batch in batches], pad_id)
    for update, batches in zip(updates, dealt, strict=True):
        yield update, list(islice(read, len(batches)))


def read_packs(
    index: ExampleIndex, reader: ExampleReader, batches: Sequence[Sequence[Pack]], pad_id: int
) -> Iterator[PackedExamples]:
    """Yields micro-batches with their examples, which are all read in advance, shard by shard."""
    examples = dict(reader.read(index, {key for batch in batches for each in batch for key in each}))
    for batch in batches:
        yield collate([[examples[key] for key in each] for each in batch], pad_id, reader.top_k)
