"""Tests Min-CE in both units, and margins."""

import numpy as np

from profuser.selection.advantage import bits_per_byte, margins, min_ce, training_advantage


def test_the_units_can_disagree():
    # The first source needs fewer nats in total, the second fewer per token of its finer tokenizer.
    nats, tokens, num_bytes = np.array([[10.0, 12.0]]), np.array([[5, 12]]), np.array([20])
    assert min_ce(training_advantage(nats, tokens, num_bytes, "bits_per_byte")).tolist() == [0]
    assert min_ce(training_advantage(nats, tokens, num_bytes, "nats_per_token")).tolist() == [1]
    np.testing.assert_allclose(training_advantage(nats, tokens, num_bytes, "nats_per_token"), [[2.0, 1.0]])


def test_bits_per_byte_is_log2_of_the_inverse_probability_per_byte():
    assert bits_per_byte(np.array(8 * np.log(2.0)), np.array(4)) == 2.0


def test_refusing_sources_are_left_out_and_ties_go_to_the_first():
    assert min_ce(np.array([[np.nan, 3.0, 1.0], [2.0, 2.0, np.nan], [np.nan] * 3])).tolist() == [2, 0, -1]


def test_margins_measure_the_lead_of_the_best_in_either_mode_and_any_unit():
    bits = np.array([[1.0, 4.0, 2.0], [3.0, np.nan, 3.0], [np.nan, 2.0, np.nan], [0.0, 0.0, 1.0]])
    assert margins(bits, "training").tolist() == [0.5, 0.0, 1.0, 0.0]
    np.testing.assert_allclose(margins(7 * bits, "training"), margins(bits, "training"))
    votes = np.array([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(margins(votes, "inference"), [1.0, 1 / 3, 0.0, 0.0])
    assert margins(np.array([[2.0], [0.5]]), "inference").tolist() == [1.0, 1.0]
    assert margins(np.array([[2.0]]), "training").tolist() == [1.0]
