"""Streams the select artifact through Ray Data to each training worker: its own micro-batches, in order, from any position.

A task reads the shards of one shuffled window and packs this worker's share of its updates; while the model trains on one
window, the next is read. A worker's data depend only on the plan and the position, so a restart, with any number of workers,
continues at the next row. (Ray Train's own split of a Dataset gives rows to the first worker that asks, and drops the remainder.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profuser.recipe.schedule import Schedule
from profuser.training.batches import Update, UpdatePlan, read_updates, windows_from
from profuser.training.examples import ExampleReader
from profuser.training.step import PackedExamples

BLOCK_BYTES = 4 << 20
"""Size at which a task emits its micro-batches, instead of at its end."""
PREFETCHED_BLOCKS = 2


@dataclass(frozen=True)
class Ingest:
    """Reads one worker's share of the updates."""

    plan: Any
    """Reference to the UpdatePlan."""
    reader: ExampleReader
    world_size: int
    rank: int
    pad_id: int

    def __call__(self, trainer: Any, only_pairs: bool = False) -> Iterator[tuple[Update, list[PackedExamples]]]:
        """Yields the remaining updates of a trainer's plan, with this worker's micro-batches."""
        place = (trainer.plan, trainer.schedule, trainer.step, trainer.cursor, only_pairs)
        # Only the start of each window: the updates themselves are recomputed where they are needed.
        begins = [(window[0].step, window[0].cursor) for window in windows_from(*place)]
        rows = _rows(self._dataset(begins, trainer.schedule, only_pairs))
        for window in windows_from(*place):
            for update in window:
                first = next(rows)
                others = [next(rows) for _ in range(first[2] - 1)]
                tables = [first, *others]
                if any(step != update.step for step, _, _ in tables):
                    raise RuntimeError(f"fuse: step {update.step}: Ray Data gave micro-batches of another step")
                yield update, [PackedExamples.from_table(table, 0, self.reader.top_k) for _, table, _ in tables]

    def _dataset(self, begins: list[tuple[int, int]], schedule: Schedule, only_pairs: bool) -> ray.data.Dataset:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_options.preserve_order = True
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        items = [{"step": step, "cursor": cursor} for step, cursor in begins]
        return ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
            _read_window,  # type: ignore[arg-type]
            fn_args=(self, schedule, only_pairs),
            batch_size=1,
            batch_format="pyarrow",
            # Reading takes little CPU compared with a step, and the workers may have reserved all CPUs.
            num_cpus=0,
            concurrency=1,
            scheduling_strategy=here,
        )


def _read_window(batch: pa.Table, ingest: Ingest, schedule: Schedule, only_pairs: bool) -> Iterator[pa.Table]:
    plan: UpdatePlan = ray.get(ingest.plan)
    updates = next(windows_from(plan, schedule, batch["step"][0].as_py(), batch["cursor"][0].as_py(), only_pairs))
    found = read_updates(plan, ingest.reader, updates, ingest.world_size, ingest.rank, ingest.pad_id)
    for update, batches in found:
        for each in batches:
            table = each.to_table()
            yield table.append_column("step", pa.array([update.step])).append_column("of", pa.array([len(batches)]))


def _rows(dataset: ray.data.Dataset) -> Iterator[tuple[int, pa.Table, int]]:
    """Yields step, micro-batch, and the step's number of micro-batches."""
    blocks: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED_BLOCKS)
    for block in blocks:
        for row in range(len(block)):
            table = block.slice(row, 1)
            yield table["step"][0].as_py(), table, table["of"][0].as_py()
