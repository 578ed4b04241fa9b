"""Draws a schedule in a terminal: the modes' weights over the updates, the boundaries of the pieces, and which may end early."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from profuser.recipe.schedule import Plateau, Schedule, SchedulePiece, uses, weights_of

ROWS = 3
"""Height of one mode's curve, in characters."""
LEFT, RIGHT = 16, 6
"""Columns to the left of the curves, for names, and to the right, for half of the last update's number."""
LEAST_COLUMNS, MOST_COLUMNS = 20, 72
COLOURS = {"training": "blue", "inference": "dark_orange3", "preference": "green", "on_policy": "magenta"}


@dataclass(frozen=True)
class Marks:
    """Characters of a drawing."""

    blocks: str
    """Characters from empty to full."""
    line: str
    open: str
    """Character of the axis where a piece may end early."""
    tick: str


UNICODE = Marks(" " + "".join(chr(0x2581 + level) for level in range(8)), "\u2500", "\u254c", "\u253c")
ASCII = Marks(" .-=#", "-", "~", "+")


@dataclass(frozen=True)
class Stretch:
    """The updates of one piece, `[first, end)`."""

    piece: SchedulePiece
    first: int
    end: int

    @property
    def earliest(self) -> int | None:
        """First update at which the next piece may begin; None if this one cannot end early."""
        moment = self.first + 2 * self.piece.moves_on.window_steps if self.piece.moves_on else self.end
        return moment if moment < self.end else None


def stretches(pieces: Sequence[SchedulePiece], num_steps: int) -> list[Stretch]:
    """Returns the updates of every piece if none ends early; a piece too short for an update has none."""
    schedule = Schedule(pieces, num_steps)
    found: dict[int, tuple[int, int]] = {}
    step = 0
    while step < num_steps:
        index, first, step = schedule.piece(step)
        found[index] = first, step
    out: list[Stretch] = []
    for index, piece in enumerate(pieces):
        before = out[-1].end if out else 0
        out.append(Stretch(piece, *found.get(index, (before, before))))
    return out


class ScheduleDrawing:
    """A schedule that rich can print.

    Args:
        pieces: of the recipe's schedule.
        num_steps: updates of the run.
    """

    def __init__(self, pieces: Sequence[SchedulePiece], num_steps: int):
        self.pieces, self.num_steps = pieces, num_steps
        self.stretches = stretches(pieces, num_steps)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields curves, axis, a table of the pieces, and a note on each piece that may end early."""
        width = max(LEAST_COLUMNS, min(MOST_COLUMNS, options.max_width - LEFT - RIGHT))
        marks = ASCII if options.ascii_only else UNICODE
        yield from self._curves(width, marks)
        yield from self._axis(width, marks)
        yield Text()
        yield self._table()
        for index, stretch in enumerate(self.stretches):
            if stretch.piece.moves_on:
                words = _early_words(index, stretch, stretch.piece.moves_on)
                yield Text("\n".join(textwrap.wrap(words, options.max_width)))

    @property
    def modes(self) -> tuple[str, ...]:
        """The paper's modes in the order of its `(w1, w2)`, and the others that have any weight."""
        others: tuple[Literal["preference", "on_policy"], ...] = ("preference", "on_policy")
        return ("inference", "training", *(mode for mode in others if uses(self.pieces, mode)))

    def _curves(self, width: int, marks: Marks) -> Iterator[Text]:
        schedule = Schedule(self.pieces, self.num_steps)
        # The middle update of each column.
        moments = [schedule.weights(int((column + 0.5) * self.num_steps / width)) for column in range(width)]
        top = max(max(weights_of(place)) for piece in self.pieces for place in (piece, piece.to) if place)
        levels = len(marks.blocks) - 1
        for mode in self.modes:
            heights = [getattr(weights, mode) / top * ROWS * levels for weights in moments]
            for row in reversed(range(ROWS)):
                label = {ROWS - 1: f"{top:g}", 0: "0"}.get(row, "")
                name = mode if row == ROWS // 2 else ""
                bar = "".join(marks.blocks[_level(height, row, levels)] for height in heights)
                yield Text.assemble(f"{name:>{LEFT - 6}} {label:>4} ", (bar.rstrip(), COLOURS[mode]))
            yield Text()

    def _axis(self, width: int, marks: Marks) -> Iterator[Text]:
        def place(step: int) -> int:
            return round(step * width / self.num_steps)

        line = [marks.line] * (width + 1)
        bounds = {0, *(stretch.end for stretch in self.stretches)}
        for stretch in self.stretches:
            if stretch.earliest is not None:
                bounds.add(stretch.earliest)
                for column in range(place(stretch.earliest), place(stretch.end)):
                    line[column] = marks.open
        numbers = ""
        for step in sorted(bounds):
            line[place(step)] = marks.tick
            text = f"{step:,}"
            begin = place(step) - len(text) // 2 + LEFT
            # A number that would touch the previous one is left out; the table has it.
            if begin > len(numbers):
                numbers = numbers.ljust(begin) + text
        yield Text(f"{'update':>{LEFT - 6}}{' ' * 6}{''.join(line)}")
        yield Text(numbers)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("piece", "from update", "updates"):
            table.add_column(name, justify="right")
        for name in (*self.modes, ""):
            table.add_column(name)
        for index, stretch in enumerate(self.stretches):
            piece = stretch.piece
            numbers = (f"{index + 1}", f"{stretch.first:,}", f"{stretch.end - stretch.first:,}")
            words = ["" if piece.to is None else piece.shape, "" if stretch.earliest is None else "may end early"]
            table.add_row(*numbers, *(_way(piece, mode) for mode in self.modes), ", ".join(filter(None, words)))
        return table


def _early_words(index: int, stretch: Stretch, plateau: Plateau) -> str:
    if stretch.earliest is None:
        needed = 2 * plateau.window_steps
        return f"Piece {index + 1} cannot end early: that takes more than {needed:,} updates."
    return (
        f"Piece {index + 1} may end from update {stretch.earliest:,} on, and ends at update {stretch.end:,}: it ends early once "
        f"the mean inference-mode cross-entropy of the last {plateau.window_steps:,} updates is not "
        f"{100 * plateau.min_gain:.3g} % below the mean of the {plateau.window_steps:,} before them. The pieces after it are then "
        "stretched over the remaining updates."
    )


def _level(height: float, row: int, levels: int) -> int:
    """Returns the fill level of a character; a weight above 0 is always visible."""
    level = min(max(round(height) - row * levels, 0), levels)
    return max(level, 1) if height > 0 and row == 0 else level


def _way(piece: SchedulePiece, mode: str) -> str:
    start = getattr(piece, mode)
    end = start if piece.to is None else getattr(piece.to, mode)
    return f"{start:g}" if start == end else f"{start:g} -> {end:g}"
