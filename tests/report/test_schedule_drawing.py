"""A schedule in a terminal: the curves follow the weights, and the numbers are the updates at which pieces begin and end."""

import io
import itertools

import pytest
from rich.console import Console

from profuser.recipe.schedule import PROGRESSIVE, Plateau, SchedulePiece, Weights
from profuser.report.plots.schedule import ScheduleDrawing, stretches
from tests.recipe.schedule_oracle import weights_at

RAMP = (SchedulePiece(until=1.0, inference=1, training=0, shape="cosine", to=Weights(inference=0.1, training=1)),)
PAIRS = (*PROGRESSIVE[:1], PROGRESSIVE[1].model_copy(update={"preference": 0.5}))
COMPETENCE = (PROGRESSIVE[0].model_copy(update={"moves_on": Plateau(window_steps=10)}), PROGRESSIVE[1])


def drawn(pieces, num_steps, width=100, encoding="utf-8"):
    """Returns the printed lines."""
    out = io.BytesIO()
    file = io.TextIOWrapper(out, encoding=encoding)
    Console(file=file, width=width, soft_wrap=True, highlight=False).print(ScheduleDrawing(pieces, num_steps))
    file.flush()
    return out.getvalue().decode(encoding).splitlines()


def heights(lines):
    """Returns the height of every column of a three-line curve, in eighths of a line."""
    rows = [line[16:].ljust(72) for line in lines]
    return [
        sum(" \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588".index(row[column]) for row in rows)
        for column in range(72)
    ]


@pytest.mark.parametrize(
    "pieces", [PROGRESSIVE, RAMP, COMPETENCE, PAIRS], ids=["progressive", "ramp", "competence", "pairs"]
)
def test_the_curves_follow_the_weights(pieces):
    lines = drawn(pieces, 720)
    modes = ["inference", "training"] + ["preference"] * (pieces is PAIRS)
    assert any("preference" in line for line in lines) == (pieces is PAIRS)
    for start, mode in zip((0, 4, 8), modes, strict=False):
        assert mode in lines[start + 1]
        found = heights(lines[start : start + 3])
        for column, height in enumerate(found):
            weight = getattr(weights_at(pieces, (column + 0.5) / 72), mode)
            assert abs(height / 24 - weight) <= 1.5 / 24
            assert (height > 0) == (weight > 0)


def test_the_axis_and_the_table_show_where_pieces_begin():
    lines = drawn(PROGRESSIVE, 301)
    numbers = next(after for line, after in itertools.pairwise(lines) if "update " in line)
    assert numbers.split() == ["0", "151", "301"]
    table = [line.split() for line in lines[-2:]]
    assert table == [["1", "0", "151", "1", "0"], ["2", "151", "150", "0.1", "1"]]


def test_a_ramp_shows_its_start_and_end_weights():
    assert drawn(RAMP, 50)[-1].split() == ["1", "0", "50", "1", "->", "0.1", "0", "->", "1", "cosine"]


def test_the_note_on_a_piece_states_when_it_may_end_early():
    text = " ".join(" ".join(drawn(COMPETENCE, 100)).split())
    assert "may end early" in text
    assert "Piece 1 may end from update 20 on, and ends at update 50" in text
    assert "of the last 10 updates is not 1 % below the mean of the 10 before" in text
    assert "more than 20 updates" in " ".join(" ".join(drawn(COMPETENCE, 40)).split())


def test_a_piece_that_is_too_short_for_an_update_has_none():
    pieces = [SchedulePiece(until=until, inference=1, training=0) for until in (0.01, 0.5, 1.0)]
    assert [(s.first, s.end) for s in stretches(pieces, 7)] == [(0, 1), (1, 4), (4, 7)]
    pieces = [SchedulePiece(until=until, inference=1, training=0) for until in (0.5, 0.51, 1.0)]
    assert [(s.first, s.end) for s in stretches(pieces, 8)] == [(0, 4), (4, 5), (5, 8)]
    assert [(s.first, s.end) for s in stretches(pieces, 1)] == [(0, 1), (1, 1), (1, 1)]


def test_a_terminal_without_blocks_gets_plain_characters():
    for pieces in (PROGRESSIVE, RAMP, COMPETENCE):
        assert "\n".join(drawn(pieces, 300, encoding="ascii")).isascii()


@pytest.mark.parametrize("width", [40, 60, 200])
def test_no_line_of_the_drawing_is_wider_than_the_terminal(width):
    assert max(map(len, drawn(COMPETENCE, 1_000_000, width))) <= max(width, 42)
