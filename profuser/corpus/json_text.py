"""Reads records from JSON text: a list, or one record per line (JSONL)."""

import io
import json
import re
from collections.abc import Iterator

from profuser.corpus.foreign import BOM, describe_foreign
from profuser.corpus.rows import EXCERPT_CHARS, TRUNCATED, RawRow, is_turn, make_row
from profuser.errors import UserError

MAX_LINE_BYTES = 64 << 20
BLANK = re.compile(r"[ \t\r\n]*")
# Possessive, so that a string is scanned once. A lone quote opens an unterminated string.
STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
NUMBER_END = re.compile(r"[,\]\s]|\Z")


def read_json_text(stream: io.BufferedIOBase, head: bytes, label: str) -> Iterator[RawRow]:
    """Reads a JSON list or JSONL; the first character decides which.

    Args:
        stream: the file, decompressed, from its beginning.
        head: its first bytes; empty if even they cannot be decompressed.
        label: the file's name.

    Raises:
        UserError: the file is something else, or a malformed list.
    """
    if foreign := describe_foreign(head):
        raise UserError(f"{label}: {foreign}")
    if not head.removeprefix(BOM).lstrip().startswith(b"["):
        yield from _read_lines(stream, label)
        return
    data = stream.read()
    # A list of turns is one record: the file is JSONL of such lists.
    yield from _read_lines(io.BytesIO(data), label) if _lists_turns(data) else _read_list(data, label)


def _lists_turns(data: bytes) -> bool:
    """Returns whether the first item of a JSON list is a turn of a conversation."""
    text = data.removeprefix(BOM).decode("utf-8", "surrogateescape")
    try:
        return is_turn(json.JSONDecoder().raw_decode(text, _skip(text, text.index("[") + 1))[0])
    except (ValueError, RecursionError):
        return False  # The reader of lists reports it.


def _read_list(data: bytes, label: str) -> Iterator[RawRow]:
    """Reads a JSON list, record by record. Bytes that are not UTF-8 invalidate only their own record."""
    text = data.removeprefix(BOM).decode("utf-8", "surrogateescape")
    decode = json.JSONDecoder().raw_decode
    place, number = _skip(text, text.index("[") + 1), 0
    closed = text.startswith("]", place)
    while not closed:
        number += 1
        try:
            record, end = decode(text, place)
            row = make_row(label, number, record, text[place:end], "record")
        except json.JSONDecodeError as error:
            raise UserError(f"{label}: record {number} of the JSON list is malformed or truncated: {error}") from None
        except (ValueError, RecursionError) as error:
            end = _end_of_value(text, place)
            excerpt = text[place : min(end, place + EXCERPT_CHARS)].encode("utf-8", "backslashreplace").decode()
            row = RawRow(label, number, None, _past_limits(error), excerpt, "record")
        yield row
        place = _skip(text, end)
        closed = text.startswith("]", place)
        if not closed and not text.startswith(",", place):
            found = repr(text[place]) if place < len(text) else "the end of the file"
            raise UserError(f"{label}: the JSON list is malformed or truncated: {found} after record {number}")
        place = place if closed else _skip(text, place + 1)
    if _skip(text, place + 1) != len(text):
        raise UserError(f"{label}: there is more text after the JSON list, which ends with record {number}")


def _skip(text: str, place: int) -> int:
    match = BLANK.match(text, place)
    return match.end() if match else place


def _end_of_value(text: str, place: int) -> int:
    """Finds the end of an unparsable value from its brackets alone; the end of the text if they do not close."""
    if text[place] not in "[{":
        match = NUMBER_END.search(text, place)
        return match.start() if match else len(text)
    depth = 0
    for piece in STRING_OR_BRACKET.finditer(text, place):
        if piece[0] == '"':
            break
        depth += (piece[0] in "[{") - (piece[0] in "]}")
        if depth == 0:
            return piece.end()
    return len(text)


def _read_lines(stream: io.BufferedIOBase, label: str) -> Iterator[RawRow]:
    """Reads JSONL; a bad line does not affect the others. Blank lines are skipped."""
    number, is_first = 0, True
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                fault = f"longer than {MAX_LINE_BYTES >> 20} MiB (expected one record per line)"
                yield RawRow(label, number, None, fault, _excerpt(line))
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                continue
            text = (line.removeprefix(BOM) if number == 1 else line).strip()
            if text == b"{" and is_first:
                raise UserError(
                    f"{label}: line {number} opens an object that spans several lines; expected a JSON list of "
                    "records, or one record per line (if the list is inside an object, save only the list)"
                )
            if text:
                is_first = False
                yield _read_line(text, label, number, whole=line.endswith(b"\n"))
    except EOFError:
        yield RawRow(label, number + 1, None, TRUNCATED)


def _read_line(line: bytes, label: str, number: int, whole: bool) -> RawRow:
    try:
        text = line.decode("utf-8")
        return make_row(label, number, json.loads(text), text)
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 (at byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        fault = _extra(error) if error.msg == "Extra data" else _broken(error, whole)
    except (ValueError, RecursionError) as error:
        fault = _past_limits(error)
    return RawRow(label, number, None, fault, _excerpt(line))


def _extra(error: json.JSONDecodeError) -> str:
    if error.doc[error.pos :] == ",":
        return "a comma after the record"
    hint = " (the lines end with CR only; save the file with LF)" if "\r" in error.doc else ""
    return f"more than one JSON value on the line{hint}"


def _broken(error: json.JSONDecodeError, whole: bool) -> str:
    what = "not JSON"
    if not whole:
        what = f"not JSON, {TRUNCATED}"
    elif error.pos >= len(error.doc) or error.msg.startswith("Unterminated string"):
        what = "not JSON, the line ends inside its record"
    return f"{what} ({error.msg} at column {error.colno})"


def _past_limits(error: ValueError | RecursionError) -> str:
    """Returns the fault of a value that exceeds the parser's limits; it may be well-formed JSON."""
    what = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has thousands of digits"
    return f"not readable as JSON ({what})"


def _excerpt(line: bytes) -> str:
    return line[:EXCERPT_CHARS].decode("utf-8", "replace")
