"""Schedules, and pieces that end early when the target stops improving."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.recipe.schedule import PROGRESSIVE, Plateau, Schedule, SchedulePiece, Weights, check_pieces
from tests.recipe.schedule_oracle import weights_at


def test_the_default_is_the_papers_two_stages():
    assert weights_at(PROGRESSIVE, 0.0) == (1.0, 0.0, 0.0, 0.0)
    assert weights_at(PROGRESSIVE, 0.4999) == (1.0, 0.0, 0.0, 0.0)
    assert weights_at(PROGRESSIVE, 0.5) == (0.1, 1.0, 0.0, 0.0)
    assert weights_at(PROGRESSIVE, 1.0) == (0.1, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.25), ("cosine", 0.1464466)])
def test_moving_pieces_go_from_their_weights_to_the_end(shape, quarter):
    ramp = [SchedulePiece(until=1.0, inference=1, training=0, shape=shape, to=Weights(inference=0, training=1))]
    assert weights_at(ramp, 0.0) == (1, 0, 0, 0)
    assert weights_at(ramp, 0.25) == pytest.approx((1 - quarter, quarter, 0, 0))
    assert weights_at(ramp, 1.0) == pytest.approx((0, 1, 0, 0))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], "until: 1.0"),
        ([SchedulePiece(until=0.9, inference=1, training=0)], "until: 1.0"),
        ([SchedulePiece(until=1.0, inference=0, training=0)], "all weights are 0"),
        ([SchedulePiece(until=1.0, inference=1, training=0, shape="linear")], "needs a `to`"),
        ([SchedulePiece(until=u, inference=1, training=0) for u in (0.6, 0.5, 1.0)], "does not come after"),
        ([SchedulePiece(until=1.0, inference=1, training=0, moves_on=Plateau())], "takes no `moves_on`"),
        (
            [SchedulePiece(until=0.5, inference=0, training=1, moves_on=Plateau()), PROGRESSIVE[1]],
            r"schedule\[0\]: `moves_on` watches the inference-mode loss, whose weight is 0",
        ),
    ],
)
def test_an_invalid_schedule_is_refused(pieces, expected):
    with pytest.raises(ValueError, match=expected):
        check_pieces(pieces)


def piece(until, inference=1.0, training=0.5, **more):
    return SchedulePiece(until=until, inference=inference, training=training, **more)


@st.composite
def any_pieces(draw):
    untils = sorted(draw(st.sets(st.floats(0.001, 0.999), max_size=5)))
    shapes = draw(st.lists(st.sampled_from(["constant", "linear", "cosine"]), min_size=6, max_size=6))
    weights = st.floats(0.1, 2.0)
    return [
        piece(
            until,
            draw(weights),
            draw(weights),
            preference=draw(st.sampled_from([0.0, 0.7])),
            on_policy=draw(st.sampled_from([0.0, 0.4])),
            shape=shape,
            to=None
            if shape == "constant"
            else Weights(inference=draw(weights), training=draw(weights), preference=0.3),
        )
        for until, shape in zip((*untils, 1.0), shapes, strict=False)
    ]


@given(pieces=any_pieces(), num_steps=st.integers(1, 400))
def test_without_early_ends_the_weights_depend_on_progress_alone(pieces, num_steps):
    schedule = Schedule(pieces, num_steps)
    for step in range(num_steps):
        assert schedule.weights(step) == weights_at(pieces, step / num_steps)
        assert not schedule.observe(step, 1.0)


@given(pieces=any_pieces(), num_steps=st.integers(1, 400))
def test_every_update_is_in_one_piece_and_the_pieces_are_contiguous(pieces, num_steps):
    schedule = Schedule(pieces, num_steps)
    found = [schedule.piece(step) for step in range(num_steps)]
    assert all(first <= step < end for step, (_, first, end) in enumerate(found))
    met = list(dict.fromkeys(found))
    assert [first for _, first, _ in met] == [0, *(end for _, _, end in met[:-1])]
    assert met[-1][2] == num_steps
    for index, first, end in met:
        start = pieces[index - 1].until if index else 0.0
        assert all(start <= step / num_steps < pieces[index].until for step in range(first, end))


STAGES = [
    piece(0.6, 1.0, 0.0, moves_on=Plateau(window_steps=5, min_gain=0.1)),
    piece(0.8, 0.5, 0.5, shape="linear", to=Weights(inference=0.1, training=1.0)),
    piece(1.0, 0.1, 1.0),
]


def losses(step):
    """Falls fast until update 20, and is constant after that."""
    return 1.0 + math.exp(-min(step, 20) / 4)


def observed(schedule, steps, loss=losses):
    return [step for step in steps if schedule.observe(step, loss(step))]


def mean_gain(step, window):
    """Computes slowly what the plateau compares after an update."""
    before, latest = (
        sum(losses(s) for s in range(step + 1 - 2 * window + shift, step + 1 - window + shift)) / window
        for shift in (0, window)
    )
    return (before - latest) / before


def test_a_piece_ends_at_the_first_update_without_gain_and_later_pieces_are_stretched():
    schedule = Schedule(STAGES, 100)
    wanted = next(step for step in range(9, 60) if mean_gain(step, 5) < 0.1)
    assert observed(schedule, range(100)) == [wanted]
    left = 100 - wanted - 1
    assert [schedule.piece(step) for step in (0, wanted)] == [(0, 0, wanted + 1)] * 2
    index, first, end = schedule.piece(wanted + 1)
    assert (index, first) == (1, wanted + 1)
    assert end == wanted + 1 + math.ceil(left / 2)
    assert schedule.piece(99) == (2, end, 100)
    assert schedule.weights(wanted) == (1.0, 0.0, 0.0, 0.0)
    # The moving piece begins at its own weights, and is halfway in the middle of its stretched time.
    assert schedule.weights(wanted + 1) == pytest.approx((0.5, 0.5, 0, 0))
    assert schedule.weights(wanted + 1 + left // 4) == pytest.approx((0.3, 0.75, 0, 0))


def test_a_piece_is_not_shortened_while_the_loss_falls():
    schedule = Schedule(STAGES, 100)
    assert observed(schedule, range(100), lambda step: 0.9**step) == []
    assert schedule.piece(59) == (0, 0, 60)


def test_updates_without_a_loss_do_not_count():
    schedule = Schedule(STAGES, 100)
    assert observed(schedule, range(100), lambda step: 1.0 if step % 3 == 0 else (None, math.nan)[step % 2]) == [27]


def test_each_piece_is_judged_by_its_own_losses():
    watched = Plateau(window_steps=3)
    stages = [piece(0.1, moves_on=watched), piece(0.9, moves_on=watched), piece(1.0)]
    # The first ends as planned, after 5 losses; the second needs 6 to compare two windows.
    assert observed(Schedule(stages, 50), range(50), lambda _: 1.0) == [10]


def test_a_moving_piece_that_ends_early_keeps_its_pace_and_past_weights():
    ramp = piece(
        0.8, 1.0, 0.0, shape="cosine", to=Weights(inference=0.2, training=1.0), moves_on=Plateau(window_steps=2)
    )
    schedule = Schedule([ramp, piece(1.0)], 50)
    before = [schedule.weights(step) for step in range(10)]
    assert observed(schedule, range(10), lambda step: 1.0 if step > 5 else 0.5**step) == [6]
    assert [schedule.weights(step) for step in range(7)] == before[:7]
    assert schedule.weights(7) == (1.0, 0.5, 0.0, 0.0)


@given(stop=st.integers(1, 59), moment=st.integers(0, 59))
def test_a_resumed_schedule_equals_an_uninterrupted_one(stop, moment):
    def loss(step):
        return 2.0 * 0.9 ** min(step, moment)

    def run(schedule, steps):
        return [(schedule.observe(step, loss(step)), schedule.weights(step + 1)) for step in steps]

    straight, first = Schedule(STAGES, 80), Schedule(STAGES, 80)
    wanted = run(straight, range(79))
    run(first, range(stop))
    resumed = Schedule(STAGES, 80)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(resumed, range(stop, 79)) == wanted[stop:]
    assert [resumed.piece(step) for step in range(80)] == [straight.piece(step) for step in range(80)]


def test_restoring_an_earlier_state_discards_later_losses():
    schedule = Schedule(STAGES, 100)
    observed(schedule, range(12))
    state = json.dumps(schedule.state_dict())
    after = observed(schedule, range(12, 60))
    schedule.load_state_dict(json.loads(state))
    assert schedule.piece(0) == (0, 0, 60)
    assert observed(schedule, range(12, 60)) == after != []
