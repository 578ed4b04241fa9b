"""Assigns examples to updates, packs them, and distributes them to workers.

Everything follows from the seed, the schedule and the position in the stream of rows (the *cursor*): a restarted run needs no other
state, and a run with another number of workers makes the same updates. Legend: R training rows of the index.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from profuser.artifacts.schemas import MODES, MODES_OF_PARTS, PARTS
from profuser.errors import TrainingError
from profuser.recipe.fusing import FuseConfig, count_steps, round_end
from profuser.recipe.schedule import ModeWeights, Schedule, SchedulePiece, Weights, uses
from profuser.training.examples import ExampleIndex, ExampleReader
from profuser.training.preference import PREFERRED, REJECTED, in_pair
from profuser.training.step import PackedExamples, collate

Key = tuple[int, int]
"""An example: row of the index, and index into `PARTS`."""
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
    """Response tokens of the whole batch, by `PARTS`."""
    denominators: tuple[float, ...]
    """What divides the losses, by `PARTS`: response tokens weighted by example; for pairs, their number."""
    sequence_tokens: int
    """Prompt and response tokens of the whole batch."""
    keys: list[Key]
    """Examples of the update; the answers of a pair follow one another."""

    def only_pairs(self) -> "Update":
        """Returns the update without its examples of the two modes."""
        return replace(self, keys=[key for key in self.keys if in_pair(key[1])])


class UpdatePlan:
    """The updates of a run or of its round. Rows are streamed epoch after epoch without a gap, each epoch in its own order.

    An epoch reads its shards in random order and shuffles rows within windows of `shuffle_rows`, so that shards are read
    sequentially.

    Args:
        index: all examples.
        config: batch, duration and packing.
        seed: seed of the order, and of the choice of validation rows.
        round_number: the round whose updates are made, from 1; by default the last.
        num_steps: updates of all rounds; by default counted from the examples, which differ between rounds.

    Raises:
        TrainingError: there are fewer updates than rounds, at some point of the schedule no row has an example in the trained
            modes, or the examples of one row are longer than a whole batch.
    """

    def __init__(
        self,
        index: ExampleIndex,
        config: FuseConfig,
        seed: int,
        round_number: int | None = None,
        num_steps: int | None = None,
    ):
        self.index, self.config, self.seed, self.round_number = index, config, seed, round_number or config.num_rounds
        self.rows, self.validation = index.split(config.validation_rows, seed)
        more = [mode for mode in ("preference", "on_policy") if uses(config.schedule, mode)]
        trained = [part for part, mode in enumerate(MODES_OF_PARTS) if mode in (*MODES, *more)]
        self.num_steps = num_steps or count_steps(config, int(index.tokens[self.rows][:, trained].sum()))
        self.end = round_end(config, self.num_steps, self.round_number)
        """Updates of this round and those before it."""
        if self.num_steps < config.rounds:
            raise TrainingError(f"fuse.rounds: {config.rounds} rounds, but only {self.num_steps} updates; set fewer")
        self._epoch = lru_cache(maxsize=2)(self._order)
        self._sizes = lru_cache(self._sizes_of)
        for piece in config.schedule:
            # A moving piece starts with its own weights only; after that both ends contribute.
            for ends in ((piece,), (piece, piece.to or piece)):
                self._sizes(_parts(*ends))

    def __reduce__(self) -> tuple[Any, ...]:
        """Drops the cached orders and sizes, which are recomputed elsewhere."""
        return UpdatePlan, (self.index, self.config, self.seed, self.round_number, self.num_steps)

    def update(self, step: int, cursor: int, weights: ModeWeights) -> Update:
        """Returns the update of the next rows whose tokens fit in the batch, without modes of zero weight."""
        parts = _parts(weights)
        sizes = self._sizes(parts)
        taken: list[int] = []
        size, end = 0, cursor
        while size + sizes[row := self._row(end)] <= self.config.batch_tokens:
            taken.append(row)
            size += int(sizes[row])
            end += 1
        keys = [(row, part) for row in taken for part in parts if self.index.tokens[row, part]]
        responses = self.index.responses[taken] * [part in parts for part in range(len(PARTS))]
        num_tokens = tuple(int(n) for n in responses.sum(axis=0))
        divided = responses * self.index.weights[taken]
        pairs = [PREFERRED, REJECTED]
        divided[:, pairs] = responses[:, pairs] > 0
        return Update(step, cursor, end, weights, num_tokens, tuple(map(float, divided.sum(axis=0))), size, keys)

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
        # An update that spans two epochs may have an example twice.
        numbered = {(unit, number): sum(lengths[key] for key in unit) for unit, number in _numbered(_units(keys))}
        bins = pack(numbered, self.config.max_tokens) if self.config.packing else [[unit] for unit in numbered]
        packs = [[key for unit, _ in each for key in unit] for each in bins]
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

    def _sizes_of(self, parts: tuple[int, ...]) -> Int[np.ndarray, "all"]:
        """Returns the tokens of every row of the index in these parts."""
        sizes = self.index.tokens[:, parts].sum(axis=1)
        if not sizes[self.rows].any():
            names = dict.fromkeys(MODES_OF_PARTS[part] for part in parts)
            raise TrainingError(
                f"fuse: no example in the mode that the schedule trains ({' and '.join(names)}); check "
                "select's counts: if verifiers accepted no answer, lower their accept_above, or set it to null to reject none"
            )
        if sizes[self.rows].max() > self.config.batch_tokens:
            raise TrainingError(
                f"fuse.batch_tokens: {self.config.batch_tokens:,} is less than the examples of one row "
                f"({sizes[self.rows].max():,} tokens); raise it, or lower fuse.max_tokens"
            )
        return sizes


def _parts(*weights: ModeWeights | Weights | SchedulePiece) -> tuple[int, ...]:
    """Returns the indices into `PARTS` of what at least one of these gives weight to."""
    return tuple(part for part, mode in enumerate(MODES_OF_PARTS) if any(getattr(each, mode) > 0 for each in weights))


def _units(keys: Sequence[Key]) -> list[tuple[Key, ...]]:
    """Returns what stays together in a pack: examples alone, pairs with both answers."""
    return [(key, (key[0], REJECTED)) if key[1] == PREFERRED else (key,) for key in keys if key[1] != REJECTED]


def _numbered(units: Sequence[tuple[Key, ...]]) -> list[tuple[tuple[Key, ...], int]]:
    """Returns each with the number of its earlier occurrences."""
    seen: Counter[tuple[Key, ...]] = Counter()
    out = []
    for unit in units:
        out.append((unit, seen[unit]))
        seen[unit] += 1
    return out


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


def windows_from(
    plan: UpdatePlan, schedule: Schedule, step: int, cursor: int, only_pairs: bool = False
) -> Iterator[list[Update]]:
    """Yields the remaining updates, by the window of rows in which each starts, under the weights known so far.

    Args:
        plan: the rows of each update.
        schedule: the weights.
        step: the first update.
        cursor: rows of the stream consumed before it.
        only_pairs: leave out all examples but pairs.
    """
    window: list[Update] = []
    end = 0
    for number in range(step, plan.end):
        update = plan.update(number, cursor, schedule.weights(number))
        if window and cursor >= end:
            yield window
            window = []
        if not window:
            end = plan.window_end(cursor)
        window.append(update.only_pairs() if only_pairs else update)
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
