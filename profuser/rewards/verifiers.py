"""Verifiers: rewards that compare an answer with the ground truth by rule."""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from jaxtyping import Float

from profuser.recipe.rewards import (
    AnswerMatchConfig,
    CallableConfig,
    ExactMatchConfig,
    LastNumberConfig,
    VerifierConfig,
)
from profuser.rewards.callables import call_function, load_callable

NUMBER = re.compile(
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"  # 1,234.5 or 1234 or .5
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)
# A minus after a letter, a digit or a bracket is a hyphen or a subtraction.
MINUS = re.compile("(?<![\\w)\\]])[-\u2212][$\u20ac\u00a3]?$|(?<!\\w)[$\u20ac\u00a3][-\u2212]$")


class Verifier:
    """A rule as the recipe names it; UserError where its function cannot be imported."""

    def __init__(self, config: VerifierConfig):
        self._rule = _rule(config)

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`; 1 or 0, or what the recipe's function gives. UserError where that fails, with the row's id."""
        return np.array([self._rule(row, answer) for row, answer in zip(rows, answers, strict=True)], dtype=np.float64)


def _rule(config: VerifierConfig) -> Callable[[Mapping[str, Any], str], float]:
    """A function of a corpus row and an answer to it."""
    match config:
        case LastNumberConfig():
            return lambda row, answer: same_last_number(answer, row["response"], config.tolerance)
        case ExactMatchConfig():
            return lambda row, answer: _plain(answer, config) == _plain(row["response"], config)
        case AnswerMatchConfig():
            return lambda row, answer: exact_match(answer, row["response"], config.pattern)
        case CallableConfig():
            function = load_callable(config)
            return lambda row, answer: call_function(function, config, row, answer)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None where it has none; how numbers are read is said by `LastNumberConfig`."""
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    number = Decimal(last[0].replace(",", ""))
    return -number if MINUS.search(text[max(0, last.start() - 3) : last.start()]) else number


def same_last_number(answer: str, response: str, tolerance: float = 0.0) -> bool:
    """Whether the last numbers of both texts are equal, or differ by no more than the tolerance; False where one has none."""
    found, expected = last_number(answer), last_number(response)
    if found is None or expected is None:
        return False
    # Through text: as a float, 0.3 is a little less than three tenths.
    return found == expected or abs(found - expected) <= Decimal(str(tolerance))


def _plain(text: str, config: ExactMatchConfig) -> str:
    text = " ".join(text.split()) if config.ignore_whitespace else text
    return text.casefold() if config.ignore_case else text


def final_answer(text: str, pattern: str | None) -> str:
    """What a text answers: the first group of the pattern's last match, else all of it; without blanks around and full stop.

    Args:
        text: an answer.
        pattern: a regular expression with a group, e.g. `answer is (.+)`.
    """
    matches = list(re.finditer(pattern, text)) if pattern else []
    found = matches[-1].group(1) if matches else text
    return (found or "").strip().removesuffix(".").strip()


def exact_match(prediction: str | None, response: str, pattern: str | None) -> bool:
    """Whether an answer and the ground truth end in the same final answer."""
    return prediction is not None and final_answer(prediction, pattern) == final_answer(response, pattern)
