"""Rules with which verifiers compare an answer with the ground truth."""

import re
from decimal import Decimal

from profuser.recipe.verifiers import ExactMatchConfig

NUMBER = re.compile(
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"  # 1,234.5 or 1234 or .5
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)
# A minus after a letter, a digit or a bracket is a hyphen or a subtraction.
MINUS = re.compile("(?<![\\w)\\]])[-\u2212][$\u20ac\u00a3]?$|(?<!\\w)[$\u20ac\u00a3][-\u2212]$")


def last_number(text: str) -> Decimal | None:
    """Returns the last number of a text, or None; `LastNumberConfig` documents how numbers are read."""
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    number = Decimal(last[0].replace(",", ""))
    return -number if MINUS.search(text[max(0, last.start() - 3) : last.start()]) else number


def same_last_number(answer: str, response: str, tolerance: float = 0.0) -> bool:
    """Returns whether the last numbers of both texts differ by at most the tolerance; False if a text has none."""
    found, expected = last_number(answer), last_number(response)
    if found is None or expected is None:
        return False
    # Converted through text: the float 0.3 is slightly less than three tenths.
    return found == expected or abs(found - expected) <= Decimal(str(tolerance))


def plain(text: str, config: ExactMatchConfig) -> str:
    """Returns a text without the differences that the recipe ignores."""
    text = " ".join(text.split()) if config.ignore_whitespace else text
    return text.casefold() if config.ignore_case else text


def final_answer(text: str, pattern: str | None) -> str:
    """Returns the first group of the pattern's last match, else the whole text; stripped, without a final full stop.

    Args:
        text: an answer.
        pattern: a regular expression with a group, e.g. `answer is (.+)`.
    """
    matches = list(re.finditer(pattern, text)) if pattern else []
    found = matches[-1].group(1) if matches else text
    return (found or "").strip().removesuffix(".").strip()


def exact_match(prediction: str | None, response: str, pattern: str | None) -> bool:
    """Returns whether an answer and the ground truth have the same final answer."""
    return prediction is not None and final_answer(prediction, pattern) == final_answer(response, pattern)
