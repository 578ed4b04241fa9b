"""Shows how the models write, as rows for the page, a CSV and a terminal."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from profuser.report.facts import RunFacts
from profuser.report.tables.table import name_cell, new_table

WRITING = (
    "Words include punctuation marks. Repeated: share of an answer's 4-word sequences that it has had before, mean over answers. "
    "Distinct: different 2-word sequences as a share of all in all answers of the model."
)


@dataclass(frozen=True)
class WritingLine:
    """How one model writes, as text."""

    model: str
    answers: str
    blank: str
    words: str
    repeated: str
    distinct: str


def writing_lines(facts: RunFacts) -> list[WritingLine]:
    """Returns a line per model."""
    return [
        WritingLine(
            facts.label(name),
            f"{found.num_answers:,}",
            f"{found.num_blank:,}",
            "-" if math.isnan(found.words) else f"{found.words:.1f}",
            _share(found.repeated),
            _share(found.distinct),
        )
        for name, found in facts.writing.items()
    ]


def writing_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """Returns a row per model, for a CSV."""
    return [{"model": name, **asdict(found)} for name, found in facts.writing.items()]


def writing_table(facts: RunFacts) -> Table:
    """Returns how each model writes, for a terminal."""
    table = new_table("answers to the held-out rows", "model")
    for name in ("answers", "blank", "words", "repeated", "distinct"):
        table.add_column(name, justify="right")
    for line in writing_lines(facts):
        table.add_row(name_cell(line.model), line.answers, line.blank, line.words, line.repeated, line.distinct)
    table.caption = "repeated: 4-word sequences that an answer has had before; distinct: different 2-word sequences"
    return table


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"
