"""Finds training rows that share a phrase of 13 words with a benchmark's question or a held-out row.

As for GPT-3 (arXiv 2005.14165, appendix C), words are compared in lower case and without punctuation, and a phrase that more than
10 rows share is common wording and is ignored. Rows of one prompt count once. Words are separated by whitespace, so text in a
script without it (Chinese, Japanese, Thai) is not compared.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from profuser.corpus.tool_turns import strings_of
from profuser.corpus.turns import Message

NUM_WORDS = 13
MOST_PROMPTS = 10
HELDOUT = "held-out rows"
CONTAMINATED, COMPARED, TOO_SHORT, COMMON = "contaminated/", "compared/", "too_short/", "common_phrases"
"""Names of counts; the name of a benchmark follows on the first three."""
PUNCTUATION = re.compile(r"[^\w\s]|_")


class Shared(NamedTuple):
    """A phrase that a training row shares."""

    found_in: str
    """Name of a benchmark, or `HELDOUT`."""
    phrase: str


def phrases(text: str) -> Iterator[str]:
    """Yields every 13 words in a row of a text."""
    words = PUNCTUATION.sub("", text.lower()).split()
    return (" ".join(words[n : n + NUM_WORDS]) for n in range(len(words) - NUM_WORDS + 1))


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a row of the corpus schema."""
    prompt = (Message(message["role"], message["content"]) for message in row["messages"])
    return [*(text for message in prompt for text in strings_of(message)), row["response"]]


class Decontamination:
    """Compares training rows with questions and held-out rows: first `add` these, then `watch` every row, then `find`.

    Args:
        questions: each benchmark's questions, as one or more texts each.
    """

    def __init__(self, questions: Mapping[str, Iterable[Sequence[str]]]):
        self._origin: dict[str, str] = {}
        self._prompts: dict[str, set[int]] = {}
        self._num_compared: Counter[str] = Counter()
        self._num_short: Counter[str] = Counter()
        self._num_dropped: Counter[str] = Counter()
        self._num_common = 0
        for name, own in questions.items():
            self.add(name, own)

    def add(self, name: str, questions: Iterable[Sequence[str]]) -> None:
        """Adds the phrases of a benchmark or of the held-out rows; a phrase of two of them counts for the first."""
        for texts in questions:
            found = [phrase for text in texts for phrase in phrases(text)]
            self._num_compared[name] += 1
            self._num_short[name] += not found
            for phrase in found:
                self._origin.setdefault(phrase, name)

    def watch(self, row: Mapping[str, Any]) -> bool:
        """Notes the phrases that a training row shares; returns whether there are any."""
        shared, prompt = self._shared(row), hash(str(row["messages"]))
        for phrase in shared:
            prompts = self._prompts.setdefault(phrase, set())
            if len(prompts) <= MOST_PROMPTS:
                prompts.add(prompt)
        return bool(shared)

    def find(self, row: Mapping[str, Any]) -> Shared | None:
        """Returns the first phrase that a watched row shares, and counts the row; None if it shares only common ones."""
        rare = (phrase for phrase in self._shared(row) if len(self._prompts[phrase]) <= MOST_PROMPTS)
        phrase = next(rare, None)
        if phrase is None:
            self._num_common += 1
            return None
        self._num_dropped[self._origin[phrase]] += 1
        return Shared(self._origin[phrase], phrase)

    def counts(self) -> dict[str, float]:
        """Returns what was compared, and how many rows were found."""
        out: dict[str, float] = {}
        for name, num in self._num_compared.items():
            out[f"{CONTAMINATED}{name}"] = self._num_dropped[name]
            out[f"{COMPARED}{name}"] = num
            out[f"{TOO_SHORT}{name}"] = self._num_short[name]
        return out | {COMMON: self._num_common}

    def _shared(self, row: Mapping[str, Any]) -> list[str]:
        return [phrase for text in texts_of(row) for phrase in phrases(text) if phrase in self._origin]


def contamination_lines(counts: Mapping[str, float]) -> list[str]:
    """Says for each benchmark and the held-out rows how many training rows were dropped; empty if nothing was compared."""
    lines = []
    for name in (key.removeprefix(COMPARED) for key in counts if key.startswith(COMPARED)):
        compared = f"{counts[f'{COMPARED}{name}']:,.0f} {'compared' if name == HELDOUT else 'questions'}"
        short = counts[f"{TOO_SHORT}{name}"]
        less = f", {short:,.0f} of them shorter than {NUM_WORDS} words" if short else ""
        dropped = counts[f"{CONTAMINATED}{name}"]
        lines.append(f"{name}: {dropped:,.0f} training rows dropped that share {NUM_WORDS} words ({compared}{less})")
    if common := counts.get(COMMON):
        lines.append(f"{common:,.0f} training rows kept that share only phrases of more than {MOST_PROMPTS} prompts")
    return lines
