"""Parses instruction records of several shapes: Alpaca, question and answer, chat messages, ShareGPT.

The reason for refusing a record has the form `what is wrong (details)`: the part before the bracket is the same for all such rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from profuser.corpus.rows import type_name

CorpusFormat = Literal["auto", "alpaca", "qa", "messages", "sharegpt"]
QA_FIELDS = (("question", "answer"), ("prompt", "response"), ("prompt", "completion"))
TURN_FIELDS = (("role", "content"), ("from", "value"))
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
KNOWN_SHAPES = (
    "alpaca (instruction, input, output), qa (question, answer; prompt, response; prompt, completion), "
    "messages (role, content), sharegpt (conversations: from, value)"
)
UNKNOWN_SHAPE = "no known shape"


class Message(NamedTuple):
    """One turn of a conversation; the role is system, user or assistant."""

    role: str
    content: str


class PromptedResponse(NamedTuple):
    """An instruction and its ground-truth response."""

    messages: tuple[Message, ...]
    """The prompt; it ends with a user turn."""
    response: str


class RowFault(Exception):  # noqa: N818
    """A record cannot be used; the message is the reason, in a few words."""


def detect_formats(record: Mapping[str, Any]) -> list[CorpusFormat]:
    """Returns the shapes that a record's fields suggest, the most likely first."""
    found: list[CorpusFormat] = []
    if "messages" in record:
        found.append("messages")
    if "conversations" in record:
        found.append("sharegpt")
    if "instruction" in record and "output" in record:
        found.append("alpaca")
    if any(question in record and answer in record for question, answer in QA_FIELDS):
        found.append("qa")
    return found


def parse_record(record: Mapping[str, Any], format: CorpusFormat) -> PromptedResponse:
    """Parses a record of the given shape; see `parse_detected` for `auto`.

    Prompt and response are stripped of surrounding whitespace, and otherwise kept byte for byte.

    Raises:
        RowFault: the record does not have the shape, or has no usable text.
    """
    if format == "auto":
        return parse_detected(record)[1]
    if format == "alpaca":
        instruction, more = _text(record, "instruction"), _optional_text(record, "input")
        prompt = f"{instruction}\n\n{more}" if more else instruction
        return PromptedResponse((Message("user", prompt),), _text(record, "output"))
    if format == "qa":
        question, answer = _qa_fields(record)
        return PromptedResponse((Message("user", _text(record, question)),), _text(record, answer))
    return _conversation(record, "messages" if format == "messages" else "conversations")


def parse_detected(record: Mapping[str, Any]) -> tuple[CorpusFormat, PromptedResponse]:
    """Parses a record as the first of its likely shapes that fits.

    Returns:
        The shape and the example.

    Raises:
        RowFault: no shape fits; the reason is that of the most likely one.
    """
    faults = []
    for format in detect_formats(record):
        try:
            return format, parse_record(record, format)
        except RowFault as fault:
            faults.append(fault)
    raise faults[0] if faults else RowFault(f"{UNKNOWN_SHAPE} ({named_fields(record)}{_records_inside(record)})")


def _records_inside(record: Mapping[str, Any]) -> str:
    """Returns a hint if a whole corpus is wrapped in one object, else an empty string."""
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and detect_formats(value[0]):
            return f"; the records are the list in {ascii(name)[:40]}: save only that list"
    return ""


def clean_text(value: Any, field: str, details: str = "") -> str:
    """Returns a text without surrounding whitespace.

    Raises:
        RowFault: the value is not text, is empty, or cannot be stored as UTF-8 without loss.
    """
    if not isinstance(value, str):
        raise RowFault(f"{field} is {type_name(value)}, expected text{details}")
    text = value.strip()
    if not text:
        raise RowFault(f"{field} is empty{details}")
    if "\x00" in text:
        raise RowFault(f"{field} has a NUL character{details}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowFault(f"{field} has an unpaired surrogate{details}") from None
    return text


def _qa_fields(record: Mapping[str, Any]) -> tuple[str, str]:
    for question, answer in QA_FIELDS:
        if question in record and answer in record:
            return question, answer
    raise RowFault(f"no question with an answer ({named_fields(record)})")


def _conversation(record: Mapping[str, Any], field: str) -> PromptedResponse:
    """Splits a conversation into the last turn, the response, and the turns before it, the prompt."""
    turns = record.get(field)
    if field not in record:
        raise RowFault(f"no field {field!r} ({named_fields(record)})")
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise RowFault(f"{field} is {type_name(turns)}, expected a list of turns")
    messages = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowFault(f"no assistant turn (of {len(roles)} turns)")
    if roles[-1] != "assistant":
        raise RowFault(f"{field} end with a {roles[-1]} turn")
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken[0] != "user":
        raise RowFault(f"{field} do not start with a user turn ({_shortened(roles)})")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowFault(f"user and assistant do not alternate ({_shortened(roles)})")
    return PromptedResponse(tuple(messages[:-1]), messages[-1].content)


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise RowFault(f"a turn is {type_name(turn)}, expected an object (turn {number})")
    role_field, text_field = next((pair for pair in TURN_FIELDS if pair[0] in turn), TURN_FIELDS[0])
    if role_field not in turn:
        raise RowFault(f"a turn has no role (turn {number}; {named_fields(turn)})")
    role = turn[role_field]
    if not isinstance(role, str) or role not in ROLES:
        raise RowFault(f"unknown role {repr(role)[:40]} (turn {number})")
    return Message(ROLES[role], _text(turn, text_field, f" (turn {number})"))


def _text(record: Mapping[str, Any], field: str, details: str = "") -> str:
    if field not in record:
        raise RowFault(f"no field {field!r}{details or f' ({named_fields(record)})'}")
    return clean_text(record[field], field, details)


def _optional_text(record: Mapping[str, Any], field: str) -> str:
    """Returns a field's text; an empty string if it is absent, null or blank."""
    value = record.get(field)
    return "" if value is None or (isinstance(value, str) and not value.strip()) else clean_text(value, field)


def named_fields(record: Mapping[str, Any]) -> str:
    """Lists a record's fields for a reason: the first few, escaped to ASCII if they are not printable."""
    names = [name if name.isprintable() else ascii(name) for name in sorted(map(str, record))]
    return f"fields: {_shortened(names)}"


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*(name[:40] for name in names[:8]), *(["..."] if len(names) > 8 else [])]) or "none"
