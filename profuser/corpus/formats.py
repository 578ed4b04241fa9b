"""Finds the shape of a record, and parses it into prompts with their responses.

The reason for refusing a record has the form `what is wrong (details)`: the part before the bracket is the same for all such rows.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from profuser.corpus.shapes import SHAPES, Shape
from profuser.corpus.turns import PromptedResponse, TurnsLearnt, cut
from profuser.corpus.values import ABSENT, RowFault, find, named_fields

CorpusFormat = Literal["auto", "alpaca", "qa", "messages", "sharegpt", "preference", "oasst"]
UNKNOWN_SHAPE = "no known shape"


class ParsedRecord(NamedTuple):
    """What a record gives."""

    shape: str
    """Name of its shape."""
    examples: list[PromptedResponse]
    """At least one."""
    unused_fields: tuple[str, ...] = ()
    """Fields that would change its meaning and are not used."""
    unused_turns: int = 0
    """Turns that are in no example."""


def known_shapes() -> str:
    """Lists the shapes with their fields, for messages."""
    fields: dict[str, list[str]] = {}
    for shape in SHAPES:
        fields.setdefault(shape.name, []).append(", ".join(shape.needs))
    return ", ".join(f"{name} ({'; '.join(each)})" for name, each in fields.items())


def parse_record(record: Mapping[str, Any], format: str = "auto", learnt: TurnsLearnt = "last") -> ParsedRecord:
    """Parses a record as the first shape of a format that fits; `auto` stands for all of them.

    Prompts and responses are stripped of surrounding whitespace, and otherwise kept byte for byte.

    Raises:
        RowFault: no shape fits; the reason is that of the most likely one.
    """
    shapes = [shape for shape in SHAPES if format in ("auto", shape.name)]
    faults = []
    for shape in shapes:
        if shape.fits(record):
            try:
                return parse_as(shape, record, learnt)
            except RowFault as fault:
                faults.append(fault)
    if faults:
        raise faults[0]
    if format == "auto":
        raise RowFault(f"{UNKNOWN_SHAPE} ({named_fields(record)}{_records_inside(record)})")
    if format == "qa":
        raise RowFault(f"no question with an answer ({named_fields(record)})")
    missing = next(field for field in shapes[0].needs if find(record, field) is ABSENT)
    raise RowFault(f"no field {missing!r} ({named_fields(record)})")


def parse_as_before(record: Mapping[str, Any], format: str, learnt: TurnsLearnt) -> ParsedRecord:
    """Parses the first record of a further file: as the shape of the file before, or else as any other.

    Raises:
        RowFault: no shape fits; the reason is that of the shape before, unless another one is more likely.
    """
    try:
        return parse_record(record, format, learnt)
    except RowFault as before:
        try:
            return parse_record(record, "auto", learnt)
        except RowFault as other:
            raise before if str(other).startswith(UNKNOWN_SHAPE) else other from None


def parse_as(shape: Shape, record: Mapping[str, Any], learnt: TurnsLearnt) -> ParsedRecord:
    """Parses a record of one shape; raises RowFault if it cannot be used."""
    turns, field, left_out = shape.parse(record)
    examples, num_after = cut(turns, field, learnt)
    unused = dict.fromkeys([*shape.unused(record), *(name for turn in turns for name in turn.unused)])
    return ParsedRecord(shape.name, examples, tuple(unused), left_out + num_after)


def _records_inside(record: Mapping[str, Any]) -> str:
    """Returns a hint if a whole corpus is wrapped in one object, else an empty string."""
    for name, value in record.items():
        is_list = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
        if is_list and any(shape.fits(value[0]) for shape in SHAPES):
            return f"; the records are the list in {ascii(name)[:40]}: save only that list"
    return ""
