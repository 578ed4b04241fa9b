"""Verifiers: which numbers and texts count as equal, and how errors of a user's function are reported."""

import sys

import pytest

from profuser.errors import UserError
from profuser.recipe.verifiers import AnswerMatchConfig, CallableConfig, ExactMatchConfig, LastNumberConfig
from profuser.rewards.kinds import load_judge
from profuser.rewards.verifiers import last_number, same_last_number

MODULE = """
import numpy
TABLE = {"a": 1}
def length(messages, answer, response): return len(answer) / len(response)
def word(messages, answer, response): return messages[-1]["content"] in answer
def half(messages, answer, response): return numpy.float32(0.5)
def text(messages, answer, response): return "0.5"
def nothing(messages, answer, response): return None
def endless(messages, answer, response): return float("inf")
def broken(messages, answer, response): return {}[answer]
"""


def row(response="The answer is 42.", prompt="What?"):
    return {"row_id": "r1", "messages": [{"role": "user", "content": prompt}], "response": response}


def callable_config(function, module="own_rewards"):
    return CallableConfig(kind="callable", name="own", path=f"{module}:{function}")


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40 + 2 = 42.", "42"),
        ("It costs $1,234,567.50!", "1234567.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22127 degrees", "-7"),
        ("x = -3", "-3"),
        ("5 - 3", "3"),
        ("10-3", "3"),
        ("GPT-4", "4"),
        ("(2)-3", "3"),
        ("50 %", "50"),
        ("50%.", "50"),
        (".5", "0.5"),
        ("about 6.02e23 of them", "6.02e23"),
        ("1, 2, 3", "3"),
        ("1,2345", "2345"),
        ("#### 1,000", "1000"),
        ("007", "7"),
        ("12345678901234567891", "12345678901234567891"),
        ("none at all", None),
        ("", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text, expected):
    found = last_number(text)
    assert found == (None if expected is None else type(found)(expected))


@pytest.mark.parametrize(
    ("answer", "response", "tolerance", "same"),
    [
        ("so 1,000", "#### 1000.0", 0, True),
        ("12345678901234567890", "12345678901234567891", 0, False),
        ("3.1", "3.14", 0.05, True),
        ("3.0", "3.3", 0.3, True),
        ("3.0", "3.31", 0.3, False),
        ("1e999", "1", 0.5, False),
        ("no number", "no number", 9, False),
        ("4", "none", 9, False),
    ],
)
def test_last_numbers_are_equal_within_a_tolerance(answer, response, tolerance, same):
    assert same_last_number(answer, response, tolerance) is same
    config = LastNumberConfig(kind="last_number", name="n", tolerance=tolerance)
    assert load_judge(config).score([row(response)], [answer]).tolist() == [float(same)]


@pytest.mark.parametrize(
    ("options", "answer", "same"),
    [
        ({}, " The answer\n is  42. ", True),
        ({}, "the answer is 42.", False),
        ({"ignore_case": True}, "the ANSWER is 42.", True),
        ({"ignore_whitespace": False}, "The answer is 42. ", False),
        ({}, "The answer is 42", False),
    ],
)
def test_exact_match_ignores_only_the_configured_differences(options, answer, same):
    judge = load_judge(ExactMatchConfig(kind="exact_match", name="same", **options))
    assert judge.score([row()], [answer]).tolist() == [float(same)]


def test_a_pattern_extracts_the_final_answer():
    judge = load_judge(AnswerMatchConfig(kind="answer_match", name="match", pattern="answer is (.+)"))
    assert judge.score([row(), row()], ["So the answer is 42", "The answer is 41."]).tolist() == [1.0, 0.0]


def test_a_users_function_receives_prompt_answer_and_ground_truth(own):
    assert load_judge(callable_config("length")).score([row("1234")], ["12"]).tolist() == [0.5]
    assert load_judge(callable_config("word")).score([row(prompt="cat"), row()], ["a cat", "no"]).tolist() == [1.0, 0.0]
    assert load_judge(callable_config("half")).score([row()], ["x"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (("length", "no.such.module"), "cannot be imported: ModuleNotFoundError"),
        (("length", "broken_rewards"), "cannot be imported: ZeroDivisionError: division by zero"),
        (("absent",), "is not a function: module own_rewards has no absent"),
        (("TABLE",), "is not a function: it is a dict"),
        (("text",), "returned '0.5' (str) on row 'r1'; it must return a finite number"),
        (("nothing",), "returned 'None' (NoneType) on row 'r1'"),
        (("endless",), "returned 'inf' (float) on row 'r1'"),
        (("broken",), "raised KeyError: 'x' on row 'r1'"),
    ],
)
def test_a_failing_function_is_reported_in_one_line_with_reward_and_row(own, config, expected):
    with pytest.raises(UserError) as caught:
        load_judge(callable_config(*config)).score([row()], ["x"])
    assert str(caught.value).startswith("rewards.own.path: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
