"""Verifiers: rewards that compare an answer with the ground truth by rule."""

import re


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
