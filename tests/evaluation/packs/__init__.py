"""Small invented data for the six benchmarks, in the columns of their datasets on the Hub."""

import json
import random
from pathlib import Path
from typing import Any

SPLITS = {
    "mmlu": ("test", "dev"),
    "hellaswag": ("validation", "train"),
    "arc_challenge": ("test", "train"),
    "winogrande": ("validation", "train"),
    "gsm8k": ("test", "train"),
    "truthfulqa_mc2": ("validation", None),
}
SUBJECTS = ("anatomy", "world_religions")
THINGS = ("letters", "a pan", "the answer", "seven", "a f u", "b v z", "sorted say", "and")


def write_pack(folder: Path, name: str, items: int = 6, examples: int = 30, seed: int = 0) -> str:
    """Writes `SPLIT.jsonl` for both splits of a benchmark; for MMLU, rows are spread over two subjects.

    Args:
        folder: folder to create.
        name: name of the benchmark.
        items: number of evaluated rows.
        examples: number of rows for worked examples.
        seed: seed of the random draws.
    """
    draw = random.Random(f"{name} {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS[name], (items, examples), strict=True):
        if split:
            rows = [MAKERS[name](draw, number) for number in range(count)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def _choices(draw: random.Random, count: int) -> list[str]:
    return [f"{thing} {number}" for number, thing in enumerate(draw.sample(THINGS, count))]


def _mmlu(draw: random.Random, number: int) -> dict[str, Any]:
    subject = SUBJECTS[number % 2]
    return {
        "question": f"Sort {number}?",
        "subject": subject,
        "choices": _choices(draw, 4),
        "answer": draw.randrange(4),
    }


def _hellaswag(draw: random.Random, number: int) -> dict[str, Any]:
    return {
        "ind": number,
        "activity_label": "Sorting",
        "ctx_a": f"Say {number}.",
        "ctx_b": "then",
        "endings": [f"{end} [step] on." * (1 + draw.randrange(2)) for end in _choices(draw, 4)],
        "label": str(draw.randrange(4)),
    }


def _arc(draw: random.Random, number: int) -> dict[str, Any]:
    labels = list("1234" if number % 3 == 0 else "ABCDE"[: 3 + number % 3])
    choices = {"text": _choices(draw, len(labels)), "label": labels}
    return {"id": f"q{number}", "question": f"Say {number}?", "choices": choices, "answerKey": draw.choice(labels)}


def _winogrande(draw: random.Random, number: int) -> dict[str, Any]:
    first, second = _choices(draw, 2)
    sentence = f"Say {number} of {first} or {second}, for _ is the answer."
    return {"sentence": sentence, "option1": first, "option2": second, "answer": draw.choice("12")}


def _gsm8k(draw: random.Random, number: int) -> dict[str, Any]:
    factor = draw.randrange(2, 9)
    return {
        "question": f"What is {number} x {factor}?",
        "answer": f"It is {number * factor}.\n#### {number * factor:,}",
    }


def _truthfulqa(draw: random.Random, number: int) -> dict[str, Any]:
    choices = _choices(draw, 3 + number % 3)
    labels = [1, 0, *(draw.randrange(2) for _ in choices[2:])]
    single = {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}
    return {"question": f"Say {number}?", "mc1_targets": single, "mc2_targets": {"choices": choices, "labels": labels}}


MAKERS = {
    "mmlu": _mmlu,
    "hellaswag": _hellaswag,
    "arc_challenge": _arc,
    "winogrande": _winogrande,
    "gsm8k": _gsm8k,
    "truthfulqa_mc2": _truthfulqa,
}
