"""Schedules as data."""

import pytest

from profuser.schedule import PROGRESSIVE, SchedulePiece, Weights, check_pieces, weights_at


def test_the_default_is_the_papers_two_stages():
    assert weights_at(PROGRESSIVE, 0.0) == (1.0, 0.0)
    assert weights_at(PROGRESSIVE, 0.4999) == (1.0, 0.0)
    assert weights_at(PROGRESSIVE, 0.5) == (0.1, 1.0)
    assert weights_at(PROGRESSIVE, 1.0) == (0.1, 1.0)


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.25), ("cosine", 0.1464466)])
def test_moving_pieces_go_from_their_weights_to_the_end(shape, quarter):
    ramp = [SchedulePiece(until=1.0, inference=1, training=0, shape=shape, to=Weights(inference=0, training=1))]
    assert weights_at(ramp, 0.0) == (1, 0)
    assert weights_at(ramp, 0.25) == pytest.approx((1 - quarter, quarter))
    assert weights_at(ramp, 1.0) == pytest.approx((0, 1))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], "until: 1.0"),
        ([SchedulePiece(until=0.9, inference=1, training=0)], "until: 1.0"),
        ([SchedulePiece(until=1.0, inference=0, training=0)], "both weights are 0"),
        ([SchedulePiece(until=1.0, inference=1, training=0, shape="linear")], "needs a `to`"),
        ([SchedulePiece(until=u, inference=1, training=0) for u in (0.6, 0.5, 1.0)], "does not come after"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(pieces, expected):
    with pytest.raises(ValueError, match=expected):
        check_pieces(pieces)
