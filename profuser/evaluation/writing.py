"""Describes how models write: length, repetition and variety of their answers, which no score of the right answer shows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa

from profuser.evaluation.heldout import ALL, common_rows

REPEATED, DISTINCT = 4, 2
"""Words of the sequences that are counted as repeated, and as distinct."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
"""A word, a punctuation mark, or a character of a script without blanks."""


@dataclass(frozen=True)
class Writing:
    """How a model writes its answers to the held-out rows."""

    num_answers: int
    num_blank: int
    """Answers without a word."""
    words: float
    """Mean words per answer, punctuation marks included; NaN without answers."""
    repeated: float
    """Mean share of an answer's 4-word sequences that it has had before, `1 - unique / all`, over the answers that are long enough
    (seq-rep-4, arXiv 1908.04319), 0 to 1; NaN if none is."""
    distinct: float
    """Different 2-word sequences as a share of all in all answers (distinct-2, arXiv 1510.03055), 0 to 1; NaN without any. It falls
    with the amount of text: compare models on the same rows."""

    @classmethod
    def of(cls, answers: Iterable[str | None]) -> "Writing":
        """Measures answers; a missing one is blank."""
        texts = [_WORD.findall((answer or "").lower()) for answer in answers]
        long = [_sequences(words, REPEATED) for words in texts if len(words) >= REPEATED]
        pairs = [pair for words in texts for pair in _sequences(words, DISTINCT)]
        return cls(
            num_answers=len(texts),
            num_blank=sum(not words for words in texts),
            words=_mean([len(words) for words in texts]),
            repeated=_mean([1 - len(set(found)) / len(found) for found in long]),
            distinct=len(set(pairs)) / len(pairs) if pairs else float("nan"),
        )


def writing(tables: Mapping[str, pa.Table]) -> dict[str, Writing]:
    """Returns how each model writes, from the evaluate tables, over the rows that every model accepted."""
    rows = common_rows(tables)[ALL] if tables else set()
    return {
        name: Writing.of(
            answer
            for row_id, answer in zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)
            if row_id in rows
        )
        for name, table in tables.items()
    }


def _sequences(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")
