"""The reference of preference mode: how likely each pair's answers were under the target when the schedule's piece began.

It is measured once per piece that trains pairs, before the piece's first update, and kept in checkpoints: a run that is resumed
within the piece no longer has that target.
"""

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from profuser.artifacts.schemas import PARTS
from profuser.recipe.schedule import weights_of
from profuser.training.preference import PREFERRED, answer_sums
from profuser.training.step import PackedExamples

if TYPE_CHECKING:
    from profuser.training.loop import Stream, Trainer


class Reference:
    """Cross-entropies of the pairs' answers under the reference, by row."""

    def __init__(self) -> None:
        self.piece: int | None = None
        """Index of the schedule's piece that the numbers are of."""
        self.nats: dict[str, list[float]] = {}
        """Sums in nats over the better and the worse answer, by row."""

    def is_due(self, trainer: "Trainer") -> bool:
        """Returns whether the trainer's next update is in a piece that needs a reference and has none yet."""
        if trainer.step >= trainer.plan.end or trainer.config.preference.kind != "dpo":
            return False
        index = trainer.schedule.piece(trainer.step)[0]
        piece = trainer.schedule.pieces[index]
        return index != self.piece and any(weights_of(each).preference for each in (piece, piece.to) if each)

    @torch.no_grad()
    def measure(self, trainer: "Trainer", stream: "Stream") -> None:
        """Scores the pairs of the piece that begins, under the target as it is; every worker scores its share."""
        index, _, end = trainer.schedule.piece(trainer.step)
        plan, seen = trainer.plan, set()
        num_pairs = int((plan.index.tokens[plan.rows, PREFERRED] > 0).sum())
        found: dict[str, list[float]] = {}
        if trainer.rank == 0:
            print(
                f"step {trainer.step}: scoring up to {num_pairs:,} pairs under the target, their reference", flush=True
            )
        module = trainer.module
        module.eval()
        for update, batches in stream(trainer, only_pairs=True):
            # Later epochs repeat the same pairs.
            if update.step >= end or len(seen) == num_pairs:
                break
            seen |= {row for row, _ in update.keys}
            for each in batches:
                batch = each.tensors(trainer.device)
                ce_nats = module(batch, torch.zeros(len(PARTS), device=trainer.device)).ce_nats
                sums = answer_sums(ce_nats.double(), batch.mode, batch.pair, each.num_pairs)
                found |= dict(zip(_rows_of_pairs(each), sums.tolist(), strict=True))
        module.train()
        module.reshard_gathered()
        self.piece, self.nats = index, _gathered(found)

    def of(self, batch: PackedExamples) -> list[list[float]]:
        """Returns the numbers of a micro-batch's pairs, in order; zeros if nothing has been measured (`simpo`)."""
        rows = _rows_of_pairs(batch)
        return [self.nats[row] for row in rows] if self.piece is not None else [[0.0, 0.0]] * len(rows)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in JSON form."""
        return {"piece": self.piece, "nats": self.nats}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state."""
        self.piece, self.nats = state["piece"], dict(state["nats"])


def _rows_of_pairs(batch: PackedExamples) -> list[str]:
    return [row for row, part in zip(batch.row_ids, batch.mode.tolist(), strict=True) if part == PREFERRED]


def _gathered(found: dict[str, list[float]]) -> dict[str, list[float]]:
    """Returns what all workers have found, in the order of the rows' names."""
    every: list[Any] = [found]
    if dist.is_initialized():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, found)
    return dict(sorted(chain.from_iterable(each.items() for each in every)))
