"""Turns records into corpus rows: validates them, assigns stable ids, removes duplicates, quarantines unusable ones."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profuser.corpus.category import category_of
from profuser.corpus.extras import extras_of
from profuser.corpus.formats import UNKNOWN_SHAPE, CorpusFormat, known_shapes, parse_as, parse_as_before, parse_record
from profuser.corpus.heldout import prompt_key
from profuser.corpus.rows import RawRow, Unit, excerpt_of
from profuser.corpus.seen import SeenRows
from profuser.corpus.shapes import mapped
from profuser.corpus.trees import join_trees
from profuser.corpus.turns import Message, PromptedResponse, TurnsLearnt
from profuser.corpus.values import RowFault
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from profuser.recipe.preparing import FieldsConfig, RowsConfig

DUPLICATE = "duplicate"
UNUSED_FIELDS = "unused_fields/"
"""Beginning of a count's name; the field's name follows."""
UNUSED_TURNS = "unused_turns"
MOST_FIELDS = 20
"""Maximum number of fields that are counted by name."""


@dataclass(frozen=True)
class CorpusRow:
    """A usable row."""

    row_id: str
    messages: tuple[Message, ...]
    response: str
    category: str | None
    source_file: str
    source_line: int
    shape: str = ""
    """Shape of its record."""
    unused_fields: tuple[str, ...] = ()
    """Fields of its record with text, or that would change the meaning, that are not used; only on the first row of a record."""
    unused_turns: int = 0
    """Turns of its record that are in no row; only on the first row of a record."""
    tests: Sequence[str] | None = None
    """Tests of the code of an answer; only on the last row of a record."""
    json_schema: str | None = None
    """JSON schema of an answer; only on the last row of a record."""


@dataclass(frozen=True)
class QuarantinedRow:
    """A refused row and the reason."""

    file: str
    line: int
    reason: str
    excerpt: str
    unit: Unit = "line"
    """Unit of `line`: lines, or records of a JSON list, a Parquet file or a Hub dataset."""


@dataclass
class RowCounts:
    """Counts of accepted and refused rows."""

    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Refused rows by reason, without the details that differ from row to row."""
    first: QuarantinedRow | None = None
    """First refused row."""
    shapes: set[str] = field(default_factory=set)
    """Shapes of the accepted rows."""
    unused_fields: Counter[str] = field(default_factory=Counter)
    """Records that have a field which is not used, by field: it holds text, or would change their meaning."""
    unused_turns: int = 0
    """Turns of accepted records that are in no row."""

    @property
    def quarantined(self) -> int:
        """Number of refused rows."""
        return sum(self.reasons.values())

    @property
    def read(self) -> int:
        """Number of all rows."""
        return self.accepted + self.quarantined

    def not_used(self) -> dict[str, float]:
        """Returns the counts of what accepted records hold and no row uses, by name; empty if there is nothing."""
        found: Counter[str] = Counter()
        for name, num in self.unused_fields.items():
            found[_count_name(name)] += num
        most = dict(sorted(found.most_common(MOST_FIELDS)))
        out: dict[str, float] = {f"{UNUSED_FIELDS}{name}": num for name, num in most.items()}
        if rest := found.total() - sum(most.values()):
            out[f"{UNUSED_FIELDS}others"] = rest
        return out | ({UNUSED_TURNS: self.unused_turns} if self.unused_turns else {})

    def add(self, row: CorpusRow | QuarantinedRow) -> None:
        """Counts a row."""
        if isinstance(row, CorpusRow):
            self.accepted += 1
            self.shapes.add(row.shape)
            self.unused_fields.update(row.unused_fields)
            self.unused_turns += row.unused_turns
            return
        is_duplicate = row.reason.startswith(f"{DUPLICATE} of ")
        self.reasons[DUPLICATE if is_duplicate else row.reason.partition(" (")[0]] += 1
        self.first = self.first or row


def prepare_rows(
    rows: Iterable[RawRow],
    format: CorpusFormat = "auto",
    category_field: str | None = None,
    max_row_bytes: int = 1_000_000,
    seen: SeenRows | None = None,
    turns: TurnsLearnt = "last",
    fields: FieldsConfig | None = None,
    by_first_question: bool | None = None,
) -> Iterator[CorpusRow | QuarantinedRow]:
    """Validates records. Yields the rows of each, in order, as accepted or quarantined; with `turns: last` one for each record.

    Args:
        rows: records as they were read.
        format: shape of all records; `auto` uses the shape of the first usable one of each file.
        category_field: field that holds a record's category; a record may lack it.
        max_row_bytes: a larger row (prompt, response, tests and schema, UTF-8) is refused.
        seen: rows that count as duplicates from the start; accepted rows are added to it.
        turns: assistant turns of a conversation that become rows.
        fields: fields of records of any other shape, instead of `format`.
        by_first_question: whether rows have one prompt if their conversations begin with the same question; by default with
            `turns: all`.
    """
    seen = SeenRows() if seen is None else seen
    own = mapped(fields) if fields else None
    shape, file, is_new = str(format), None, False
    for raw in rows if own else join_trees(rows):
        is_new, file = is_new or (raw.file != file and format == "auto"), raw.file
        try:
            if raw.record is None:
                raise RowFault(raw.fault or "no record")
            if own:
                parsed = parse_as(own, raw.record, turns)
            else:
                parsed = (parse_as_before if is_new else parse_record)(raw.record, shape, turns)
            category = category_of(raw.record, category_field) if category_field else None
            extras = extras_of(raw.record, fields) if fields else {}
        except RowFault as fault:
            yield _refused(raw, fault)
            continue
        unused = [name for name in parsed.unused_fields if name != (category_field or "").partition(".")[0]]
        notes: dict[str, Any] = {"unused_fields": tuple(unused), "unused_turns": parsed.unused_turns}
        for example in parsed.examples:
            notes |= extras if example is parsed.examples[-1] else {}
            try:
                _check_size(example, extras, max_row_bytes)
                row_id = example_id(example)
                key = prompt_key(example, turns == "all" if by_first_question is None else by_first_question)
                if first := seen.add(row_id, raw.file, raw.line, key):
                    raise RowFault(f"{DUPLICATE} of {first}")
            except RowFault as fault:
                yield _refused(raw, fault)
                continue
            shape, is_new = parsed.shape, False
            yield CorpusRow(row_id, *example, category, raw.file, raw.line, parsed.shape, **notes)
            notes = {}


def corpus_rows(
    config: CorpusConfig, raws: Iterable[RawRow], seen: SeenRows | None = None, source: RowsConfig | None = None
) -> Iterator[CorpusRow | QuarantinedRow]:
    """Validates records as the recipe says, see `prepare_rows`; `source` is the part that they belong to, if there are parts."""
    how = source or config
    return prepare_rows(
        raws,
        how.format,
        how.category_path,
        config.max_row_bytes,
        seen,
        how.turns,
        how.fields,
        config.by_first_question,
    )


def _count_name(field: str) -> str:
    """Returns a field's name as a part of a count's name, which MLflow must accept."""
    return re.sub(r"[^\w. -]", "_", field)[:60].strip(" .") or "_"


def _refused(raw: RawRow, fault: RowFault) -> QuarantinedRow:
    return QuarantinedRow(raw.file, raw.line, str(fault), raw.excerpt or excerpt_of(raw.record), raw.unit)


def _check_size(example: PromptedResponse, extras: Mapping[str, Any], max_row_bytes: int) -> None:
    texts = [example.response, *(message.content for message in example.messages), *extras.get("tests", ())]
    size = sum(len(text.encode()) for text in (*texts, extras.get("json_schema", "")))
    if size > max_row_bytes:
        raise RowFault(f"larger than corpus.max_row_bytes={max_row_bytes} ({size} bytes)")


def example_id(example: PromptedResponse) -> str:
    """Returns sixteen hex digits of the SHA-256 over prompt and response: equal for equal content, wherever it is stored."""
    text = json.dumps([example.messages, example.response], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unused_line(counts: Mapping[str, float]) -> str:
    """Names the fields that a corpus has and that are not used, and counts its unused turns; empty if there are none."""
    named = [
        f"{name.removeprefix(UNUSED_FIELDS)} ({num:,.0f} rows)"
        for name, num in counts.items()
        if name.startswith(UNUSED_FIELDS)
    ]
    fields = [f"fields not used: {', '.join(named)}"] if named else []
    turns = [f"{num:,.0f} turns not used"] if (num := counts.get(UNUSED_TURNS)) else []
    return "; ".join([*turns, *fields])


def check_quarantine(location: str, summary: RowCounts, max_fraction: float) -> None:
    """Raises UserError if no row is usable, or more were refused than the recipe allows; it names the first refused row."""
    total, refused = summary.read, summary.quarantined
    if total == 0:
        raise UserError(f"corpus {location}: no usable row: it contains no records")
    cause = first_cause(location, summary.first) if summary.first else ""
    if summary.accepted == 0:
        raise UserError(f"corpus {location}: no usable row: {total} read, {refused} refused{cause}")
    if refused > max_fraction * total:
        raise UserError(
            f"corpus {location}: {refused} of {total} rows ({100 * refused / total:.3g} %) were refused, more than "
            f"corpus.max_quarantined_fraction={max_fraction:g}{cause}"
        )


def first_cause(location: str, first: QuarantinedRow) -> str:
    """Returns the place and reason of the first refused row, as the end of a sentence."""
    where = f"{first.unit} {first.line}" if first.file == location else f"{first.file}, {first.unit} {first.line}"
    hint = f"; known shapes: {known_shapes()}" if first.reason.startswith(UNKNOWN_SHAPE) else ""
    return f"; the first: {where}: {first.reason}{hint}"
