"""What is wrong with a row of a benchmark's data, or None: what the harness would stumble over, or read as something else.

Each looks at a row that has all columns of its benchmark.
"""

from typing import Any


def _choice(index: Any, choices: Any, least: int = 2) -> str | None:
    if not isinstance(choices, list) or len(choices) < least:
        return f"expected a list of at least {least} choices, got {str(choices)[:60]!r}"
    if not str(index).isdigit() or int(index) >= len(choices):
        return f"{index!r} is none of its {len(choices)} choices"
    return None


def mmlu_fault(row: dict[str, Any]) -> str | None:
    """Four choices; the answer is a number from 0, or a letter."""
    answer = row["answer"]
    return _choice("ABCD".find(answer) if answer in tuple("ABCD") else answer, row["choices"], 4)


def hellaswag_fault(row: dict[str, Any]) -> str | None:
    """Endings; the label is a number from 0, as text on the Hub, where rows without one are not to be measured on."""
    return _choice(row["label"], row["endings"])


def arc_fault(row: dict[str, Any]) -> str | None:
    """Choices with labels; the answer is one of the labels."""
    labels = row["choices"].get("label") if isinstance(row["choices"], dict) else None
    if not labels or len(labels) != len(row["choices"].get("text") or ()):
        return "choices must hold the lists text and label, of one length"
    return None if row["answerKey"] in labels else f"answerKey {row['answerKey']!r} is none of {labels}"


def winogrande_fault(row: dict[str, Any]) -> str | None:
    """A sentence with a blank; the answer is '1' or '2'."""
    if "_" not in str(row["sentence"]):
        return "the sentence has no _ to fill"
    return None if row["answer"] in ("1", "2") else f"answer is {row['answer']!r}, expected '1' or '2'"


def gsm8k_fault(row: dict[str, Any]) -> str | None:
    """A worked answer that ends with `#### NUMBER`."""
    return None if "#### " in str(row["answer"]) else "the answer does not end with #### and a number"


def truthfulqa_fault(row: dict[str, Any]) -> str | None:
    """Choices with labels; at least one is true."""
    targets = row["mc2_targets"] if isinstance(row["mc2_targets"], dict) else {}
    labels = targets.get("labels") or []
    if len(labels) != len(targets.get("choices") or []) or 1 not in labels:
        return "mc2_targets must hold the lists choices and labels, of one length, with a 1 among the labels"
    return None
