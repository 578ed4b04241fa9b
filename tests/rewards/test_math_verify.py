"""`math_verify`: which expressions are equal, what cannot be judged, and that no expression stops the stage."""

import json
import os
import signal
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.errors import UserError
from profuser.recipe.verifiers import MathVerifyConfig
from profuser.rewards import math_answers
from profuser.rewards.kinds import kind_of, load_judge
from profuser.rewards.math_answers import final_part

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
TOWER = r"$9^{9^{9^9}}$"


def config(**settings):
    return MathVerifyConfig(kind="math_verify", name="math", **settings)


@pytest.fixture(scope="module")
def judge():
    return load_judge(config())


def rewards(judge, *pairs):
    rows = [{"row_id": "r", "response": truth, "category": None} for truth, _ in pairs]
    return judge.score(rows, [answer for _, answer in pairs]).tolist()


EQUAL = [
    ("#### 42", "42"),
    ("#### 42", "The answer is 42."),
    ("#### 42", "#### 42"),
    ("#### 1,000", "So there are 1000 of them."),
    ("#### 1,000", r"\boxed{1,000}"),
    ("6 * 7 = 42\n#### 42", "**42**"),
    ("#### 15", "She earns $5, then $10, so she has $15 in total."),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\frac12}", r"Thus $x = \frac{2}{4}$."),
    ("1/3", "0.333333"),
    (r"\frac{1}{2}", r"\(\dfrac{1}{2}\)"),
    (r"\sqrt{2}", r"$\frac{2}{\sqrt{2}}$"),
    (r"\sqrt{8}", r"$2\sqrt{2}$"),
    (r"$2^{10}$", "1024"),
    (r"$(x+1)^2$", r"$x^2 + 2x + 1$"),
    (r"$x^2-1$", r"\boxed{(x-1)(x+1)}"),
    (r"$\sin^2 x + \cos^2 x$", "1"),
    ("12%", r"$12\%$"),
    ("50%", r"$\frac{1}{2}$"),
    (r"\{1, 2\}", r"$\{2, 1\}$"),
    (r"$\{1, \frac{1}{2}\}$", r"$\{0.5, 1\}$"),
    ("(0, 1]", r"The solution is $(0, 1]$."),
    (r"$x < 3$", r"$(-\infty, 3)$"),
    (r"$x = 3$", "3"),
    ("3", "$x = 3$"),
    (r"$\pi$", r"\boxed{\pi}"),
    (r"$-\frac{3}{4}$", "-0.75"),
    (r"$\begin{pmatrix}1\\2\end{pmatrix}$", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    (r"$1{,}234$", "1234"),
]
UNEQUAL = [
    ("#### 42", "43"),
    ("#### 42", "-42"),
    ("#### 42", "The first is 42, the second is 7."),
    ("#### 42", "I do not know."),
    (r"\boxed{\frac{1}{2}}", "1/3"),
    ("1/3", "0.34"),
    (r"$(x+1)^2$", r"$x^2 + 1$"),
    (r"\{1, 2\}", r"$\{1, 3\}$"),
    (r"\{1, 2\}", r"$\{1, 2, 3\}$"),
    ("(0, 1]", r"$(0, 1)$"),
    ("[0, 1]", r"$[0, 2]$"),
    (r"$x = 3$", r"$y = 3$"),
    (r"$\pi$", "3.14"),
    ("12%", "13%"),
    (r"\sqrt{2}", "2"),
]


@pytest.mark.parametrize(("truth", "answer"), EQUAL)
def test_equal_expressions(judge, truth, answer):
    assert rewards(judge, (truth, answer)) == [1]


@pytest.mark.parametrize(("truth", "answer"), UNEQUAL)
def test_unequal_expressions(judge, truth, answer):
    assert rewards(judge, (truth, answer)) == [0]


@settings(max_examples=25, deadline=None)
@given(st.fractions(min_value=-99, max_value=99, max_denominator=40), st.fractions(-99, 99, max_denominator=40))
def test_fractions_are_equal_if_and_only_if_they_are_the_same_number(judge, one, other):
    plain, latex = (
        f"{one.numerator}/{one.denominator}",
        rf"\boxed{{\frac{{{2 * one.numerator}}}{{{2 * one.denominator}}}}}",
    )
    mixed = rf"$\frac{{{other.numerator}}}{{{other.denominator}}}$"
    assert rewards(judge, (plain, latex), (latex, mixed)) == [1, float(Fraction(one) == other)]


@pytest.mark.parametrize("truth", ["", "no number at all", r"\boxed{}", "yes"])
def test_a_ground_truth_without_an_expression_is_not_judged(judge, truth):
    assert np.isnan(rewards(judge, (truth, "42"))).all()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("5*2=<<5*2=10>>10\n#### 10", "10"),
        ("#### Answer\nIt is 5.", "Answer\nIt is 5."),
        ("##### 5", "##### 5"),
        ("a #### b", "a #### b"),
        (r"\sqrt{2}", r"$\sqrt{2}$"),
        (r"\frac{1}{2} of them", r"\frac{1}{2} of them"),
        ("(0, 1]", "$(0, 1]$"),
        ("-1,234.5", "-1,234.5"),
    ],
)
def test_the_final_part_of_a_text(text, part):
    assert final_part(text) == part


@pytest.mark.skipif(not GSM8K.exists(), reason="needs GSM8K's training split")
def test_gsm8ks_answers_are_judged_as_the_last_number_is(judge):
    truths = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()[:300]]
    numbers = [truth.rsplit("####", 1)[1].strip() for truth in truths]
    forms = ("{}", "So the answer is {}.", "**${}**", r"\boxed{{{}}}", "#### {}", "It is {}", "Words.\n#### {}")
    pairs = [(truth, form.format(number)) for truth, number in zip(truths, numbers, strict=True) for form in forms]
    assert set(rewards(judge, *pairs)) == {1}
    assert set(
        rewards(judge, *((truth, f"#### {number}1") for truth, number in zip(truths, numbers, strict=True)))
    ) == {0}


def test_no_expression_stops_the_stage():
    judge = load_judge(config(timeout_seconds=2))
    found = rewards(judge, ("42", TOWER), ("42", "42"), (TOWER, "42"))
    assert found[:2] == [0, 1]
    assert found[2] != 1
    assert judge.reasons["out_of_time"] >= 1
    assert rewards(judge, ("42", r"$\boxed{42}$")) == [1]


def test_the_limit_holds_in_any_thread_and_ends_a_computation_that_python_cannot_interrupt():
    judge, found = load_judge(config(timeout_seconds=2)), []
    # 2 ** 33 has nine digits; a factorial of it is computed in C, for hours.
    pairs = [("42", "$(2^{33})!$"), ("1", "1")]
    thread = threading.Thread(target=lambda: found.extend(rewards(judge, *pairs)))
    thread.start()
    thread.join(60)
    assert found == [0, 1]
    assert judge.reasons == {"out_of_time": 1}


def test_a_process_that_was_killed_is_started_again(judge):
    assert rewards(judge, ("1", "1")) == [1]
    os.kill(judge.rule.process.pid, signal.SIGKILL)
    judge.rule.process.wait()
    assert rewards(judge, ("1", "1")) == [1]


def test_reasons_are_counted_per_call(judge):
    rewards(judge, ("1", "2"), ("1", "none"), ("1", "1"), ("none", "1"))
    assert judge.reasons == {"wrong": 1, "without_expression": 1}
    rewards(judge, ("1", "1"))
    assert not judge.reasons


def test_a_missing_library_is_reported_before_the_run(monkeypatch):
    monkeypatch.setattr(math_answers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rewards.math.kind: math_verify needs .*pip install math-verify"):
        kind_of(config()).check(config())
