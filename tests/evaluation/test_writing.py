"""How models write: repetition and variety against counts by hand."""

import math

import pyarrow as pa
import pytest

from profuser.artifacts.schemas import EVALUATE
from profuser.evaluation.writing import Writing, writing


def test_a_loop_is_repeated_and_little_distinct():
    loop = Writing.of(["so it is so it is so it is"])
    # Six sequences of four words, of which three are new; eight pairs, of which three differ.
    assert (loop.words, loop.repeated, loop.distinct) == (9, 1 - 3 / 6, 3 / 8)
    plain = Writing.of(["one two three four five"])
    assert (plain.repeated, plain.distinct) == (0, 1)


def test_words_are_counted_in_any_script_and_case_does_not_count():
    assert Writing.of(["Yes, yes!"]).words == 4
    assert Writing.of(["今日は晴れ"]).words == 5
    assert Writing.of(["안녕 하세요"]).words == 5
    assert Writing.of(["caf\u00e9 au_lait 3.5"]).words == 5
    assert Writing.of(["A b A b a B"]).distinct == Writing.of(["a b a b a b"]).distinct == 2 / 5


def test_blank_and_short_answers_are_no_repetition():
    found = Writing.of(["", None, " \n", "7"])
    assert (found.num_answers, found.num_blank, found.words) == (4, 3, 0.25)
    assert math.isnan(found.repeated)
    assert math.isnan(found.distinct)
    assert math.isnan(Writing.of([]).words)


def test_models_are_compared_on_the_rows_that_all_accept():
    def table(*records):
        rows = [dict(zip(("row_id", "prediction", "refused"), each, strict=True)) for each in records]
        rest = {"category": None, "correct": None, "nats": None, "response_bytes": 1}
        return pa.Table.from_pylist([row | rest for row in rows], schema=EVALUATE)

    tables = {
        "target": table(("1", "one two", None), ("2", "three", None)),
        "fused": table(("1", "one", None), ("2", None, "too long")),
    }
    found = writing(tables)
    assert {name: (each.num_answers, each.words) for name, each in found.items()} == {"target": (1, 2), "fused": (1, 1)}
    assert found["fused"].num_blank == 0
    assert writing({}) == {}
    assert found["target"].distinct == pytest.approx(1)
