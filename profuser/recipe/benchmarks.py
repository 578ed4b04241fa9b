"""The six benchmarks of the Open LLM Leaderboard, one record each. Prompts and scoring are those of lm-evaluation-harness.

A record's `fault` checks a row that has all its columns for values on which the harness would fail, or which it would misread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A benchmark as the Open LLM Leaderboard and the paper run it."""

    num_fewshot: int
    metric: str
    """Headline metric, by the harness's name."""
    num_items: int
    """Items of the whole benchmark on the Hub."""
    requests_per_item: float
    """Prompts per item: for multiple choice, one per choice."""
    example_tokens: int
    """Approximate tokens of one question with its answer; for estimates."""
    hub: str
    """Name of the dataset on the Hub."""
    evaluated: str
    """Split that is evaluated."""
    columns: tuple[str, ...]
    """Columns that every row has."""
    fault: Callable[[dict[str, Any]], str | None]
    """Function that returns what is wrong with a row of the evaluated split, or None."""
    filter: str = "none"
    """Harness filter to whose answers the metric is applied."""
    configuration: str | None = None
    """Configuration of the dataset on the Hub; MMLU has one per subject."""
    examples: str | None = "train"
    """Split that the worked examples come from."""
    tasks: str = ""
    """Folder of the benchmark's tasks in the harness; by default its name."""
    question: Callable[[dict[str, Any]], tuple[str, ...]] = lambda row: (str(row["question"]),)
    """Function that returns the texts of a row's question, to compare a corpus with them."""


def _choice(index: Any, choices: Any, least: int = 2) -> str | None:
    if not isinstance(choices, list) or len(choices) < least:
        return f"expected a list of at least {least} choices, got {str(choices)[:60]!r}"
    if not str(index).isdigit() or int(index) >= len(choices):
        return f"{index!r} is not one of its {len(choices)} choices"
    return None


def _mmlu_fault(row: dict[str, Any]) -> str | None:
    """Checks a row with four choices, whose answer is a number from 0 or a letter."""
    answer = row["answer"]
    return _choice("ABCD".find(answer) if answer in tuple("ABCD") else answer, row["choices"], 4)


def _hellaswag_fault(row: dict[str, Any]) -> str | None:
    """Checks a row of endings, whose label is a number from 0 (text on the Hub, where rows without a label are not evaluated)."""
    return _choice(row["label"], row["endings"])


def _arc_fault(row: dict[str, Any]) -> str | None:
    """Checks a row of labelled choices, whose answer is one of the labels."""
    labels = row["choices"].get("label") if isinstance(row["choices"], dict) else None
    if not labels or len(labels) != len(row["choices"].get("text") or ()):
        return "choices must hold the lists text and label, of equal length"
    return None if row["answerKey"] in labels else f"answerKey {row['answerKey']!r} is not one of {labels}"


def _winogrande_fault(row: dict[str, Any]) -> str | None:
    """Checks a sentence with a blank, whose answer is '1' or '2'."""
    if "_" not in str(row["sentence"]):
        return "the sentence has no _ to fill"
    return None if row["answer"] in ("1", "2") else f"answer is {row['answer']!r}, expected '1' or '2'"


def _gsm8k_fault(row: dict[str, Any]) -> str | None:
    """Checks a worked answer, which ends with `#### NUMBER`."""
    return None if "#### " in str(row["answer"]) else "the answer does not end with #### and a number"


def _truthfulqa_fault(row: dict[str, Any]) -> str | None:
    """Checks a row of labelled choices, of which at least one is true."""
    targets = row["mc2_targets"] if isinstance(row["mc2_targets"], dict) else {}
    labels = targets.get("labels") or []
    if len(labels) != len(targets.get("choices") or []) or 1 not in labels:
        return "mc2_targets must hold the lists choices and labels, of equal length, with a 1 among the labels"
    return None


PRESETS = {
    "mmlu": Preset(
        num_fewshot=5,
        metric="acc",
        num_items=14_042,
        requests_per_item=4,
        example_tokens=110,
        hub="cais/mmlu",
        evaluated="test",
        columns=("question", "choices", "answer"),
        fault=_mmlu_fault,
        examples="dev",
        tasks="mmlu/default",
    ),
    "hellaswag": Preset(
        num_fewshot=10,
        metric="acc_norm",
        num_items=10_042,
        requests_per_item=4,
        example_tokens=95,
        hub="Rowan/hellaswag",
        evaluated="validation",
        columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        fault=_hellaswag_fault,
        question=lambda row: (f"{row['ctx_a']} {row['ctx_b']}",),
    ),
    "arc_challenge": Preset(
        num_fewshot=25,
        metric="acc_norm",
        num_items=1_172,
        requests_per_item=4,
        example_tokens=45,
        hub="allenai/ai2_arc",
        configuration="ARC-Challenge",
        evaluated="test",
        columns=("question", "choices", "answerKey"),
        fault=_arc_fault,
        tasks="arc",
    ),
    "winogrande": Preset(
        num_fewshot=5,
        metric="acc",
        num_items=1_267,
        requests_per_item=2,
        example_tokens=30,
        hub="allenai/winogrande",
        configuration="winogrande_xl",
        evaluated="validation",
        columns=("sentence", "option1", "option2", "answer"),
        fault=_winogrande_fault,
        question=lambda row: tuple(
            row["sentence"].replace("_", text) for text in ("_", row["option1"], row["option2"])
        ),
    ),
    "gsm8k": Preset(
        num_fewshot=5,
        metric="exact_match",
        filter="strict-match",
        num_items=1_319,
        requests_per_item=1,
        example_tokens=200,
        hub="openai/gsm8k",
        configuration="main",
        evaluated="test",
        columns=("question", "answer"),
        fault=_gsm8k_fault,
    ),
    "truthfulqa_mc2": Preset(
        num_fewshot=0,
        metric="acc",
        num_items=817,
        requests_per_item=7.2,
        example_tokens=160,
        hub="truthfulqa/truthful_qa",
        configuration="multiple_choice",
        evaluated="validation",
        columns=("question", "mc2_targets"),
        fault=_truthfulqa_fault,
        examples=None,
        tasks="truthfulqa",
    ),
}
LEADERBOARD = "open-llm-leaderboard"
"""Name for all six benchmarks."""
