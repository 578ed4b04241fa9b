"""From records to corpus rows: validated, with stable ids, without duplicates; what cannot be used is quarantined."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from profuser.corpus.formats import CorpusFormat, Example, Message, RowFault, detect_format, parse_record
from profuser.corpus.readers import RawRow
from profuser.errors import UserError


@dataclass(frozen=True)
class CorpusRow:
    """A usable row."""

    row_id: str
    messages: tuple[Message, ...]
    response: str
    category: str | None
    source_file: str
    source_line: int


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that was refused, and why."""

    file: str
    line: int
    reason: str
    excerpt: str


@dataclass
class Summary:
    """What came of the rows so far."""

    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: QuarantinedRow | None = None

    @property
    def quarantined(self) -> int:
        """Rows that were refused."""
        return sum(self.reasons.values())

    def add(self, row: CorpusRow | QuarantinedRow) -> None:
        """Counts a row."""
        if isinstance(row, CorpusRow):
            self.accepted += 1
            return
        self.reasons[row.reason] += 1
        self.first = self.first or row


def prepare_rows(
    rows: Iterable[RawRow],
    shape: CorpusFormat = "auto",
    category_field: str | None = None,
    max_row_bytes: int = 1_000_000,
) -> Iterator[CorpusRow | QuarantinedRow]:
    """Validates records, each of which comes out once: accepted or quarantined.

    Args:
        rows: records as they were read.
        shape: of all of them; `auto` takes that of the first one that has a known shape.
        category_field: field of a record that is its category.
        max_row_bytes: a larger row (prompt and response, UTF-8) is refused.
    """
    seen: dict[str, str] = {}
    for raw in rows:
        try:
            if raw.record is None:
                raise RowFault(raw.fault or "no record")
            if shape == "auto":
                shape = detect_format(raw.record) or "auto"
            example = parse_record(raw.record, shape)
            size = sum(len(text.encode()) for _, text in (*example.messages, Message("", example.response)))
            if size > max_row_bytes:
                raise RowFault(f"{size:,} bytes are more than corpus.max_row_bytes={max_row_bytes:,}")
            row_id = example_id(example)
            if row_id in seen:
                raise RowFault(f"duplicate of {seen[row_id]}")
        except RowFault as fault:
            yield QuarantinedRow(raw.file, raw.line, str(fault), raw.excerpt)
            continue
        seen[row_id] = f"{raw.file}:{raw.line}"
        category = raw.record.get(category_field) if category_field else None
        name = None if category is None else str(category)
        yield CorpusRow(row_id, example.messages, example.response, name, raw.file, raw.line)


def example_id(example: Example) -> str:
    """Sixteen hex digits of the SHA-256 over prompt and response: the same for the same content, wherever it lies."""
    text = json.dumps([example.messages, example.response], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_heldout(rows: list[CorpusRow], heldout_rows: int, seed: int) -> tuple[list[CorpusRow], list[CorpusRow]]:
    """Keeps rows apart to evaluate on: those with the smallest hash of seed and id, so that order in the file does not matter.

    Returns:
        The rest and the held-out rows, each in the order of the corpus.

    Raises:
        UserError: nothing would be left to learn from.
    """
    if heldout_rows >= len(rows):
        raise UserError(
            f"corpus: {len(rows)} usable rows, of which corpus.heldout_rows={heldout_rows} are kept apart: none is left to "
            "learn from; lower corpus.heldout_rows"
        )

    def rank(row: CorpusRow) -> bytes:
        return hashlib.sha256(f"{seed}:{row.row_id}".encode()).digest()

    kept = {row.row_id for row in sorted(rows, key=rank)[:heldout_rows]}
    return [row for row in rows if row.row_id not in kept], [row for row in rows if row.row_id in kept]


def check_quarantine(location: str, summary: Summary, max_fraction: float) -> None:
    """Raises UserError where no row is usable, or more were refused than a recipe allows, naming the first."""
    total = summary.accepted + summary.quarantined
    first = summary.first
    cause = f"; the first: {first.file}:{first.line}: {first.reason}" if first else ""
    if summary.accepted == 0:
        raise UserError(f"corpus {location}: no usable row: {total} read, {summary.quarantined} refused{cause}")
    if summary.quarantined > max_fraction * total:
        raise UserError(
            f"corpus {location}: {summary.quarantined} of {total} rows were refused, more than "
            f"corpus.max_quarantined_fraction={max_fraction:g} allows{cause}"
        )
