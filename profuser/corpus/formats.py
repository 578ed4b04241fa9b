"""Shapes of instruction records: Alpaca, question and answer, chat messages, ShareGPT."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

CorpusFormat = Literal["auto", "alpaca", "qa", "messages", "sharegpt"]
QA_FIELDS = (("question", "answer"), ("prompt", "response"), ("prompt", "completion"))
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}


class Message(NamedTuple):
    """One turn of a conversation; the role is system, user or assistant."""

    role: str
    content: str


class Example(NamedTuple):
    """An instruction and its ground-truth response."""

    messages: tuple[Message, ...]
    """The prompt; it ends with a user turn."""
    response: str


class RowFault(Exception):  # noqa: N818
    """Why a record cannot be used, in a few words."""


def detect_format(record: Mapping[str, Any]) -> CorpusFormat | None:
    """The shape that a record's fields speak of, or None."""
    if "messages" in record:
        return "messages"
    if "conversations" in record:
        return "sharegpt"
    if "instruction" in record and "output" in record:
        return "alpaca"
    if any(question in record and answer in record for question, answer in QA_FIELDS):
        return "qa"
    return None


def parse_record(record: Mapping[str, Any], shape: CorpusFormat) -> Example:
    """Reads a record of a shape. The response loses blanks around it, and is otherwise kept byte for byte.

    Raises:
        RowFault: the record is not of the shape or has no usable text.
    """
    if shape == "auto":
        found = detect_format(record)
        if found is None:
            raise RowFault(f"no known shape (fields: {_fields(record)})")
        return parse_record(record, found)
    if shape == "alpaca":
        instruction, more = _text(record, "instruction"), record.get("input") or ""
        if not isinstance(more, str):
            raise RowFault(f"field 'input' is {_kind(more)}, expected text")
        prompt = f"{instruction}\n\n{_clean(more, 'input')}" if more.strip() else instruction
        return Example((Message("user", prompt),), _text(record, "output"))
    if shape == "qa":
        question, answer = _qa_fields(record)
        return Example((Message("user", _text(record, question)),), _text(record, answer))
    if shape == "messages":
        return _conversation(record, "messages", "role", "content")
    return _conversation(record, "conversations", "from", "value")


def _qa_fields(record: Mapping[str, Any]) -> tuple[str, str]:
    for question, answer in QA_FIELDS:
        if question in record and answer in record:
            return question, answer
    raise RowFault(f"no question with an answer (fields: {_fields(record)})")


def _conversation(record: Mapping[str, Any], field: str, role_key: str, text_key: str) -> Example:
    """The last assistant turn is the response; what comes before it is the prompt."""
    turns = record.get(field)
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise RowFault(f"no field {field!r} with a list of turns (fields: {_fields(record)})")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise RowFault(f"turn {number} is {_kind(turn)}, expected {role_key} and {text_key}")
        role = ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise RowFault(f"turn {number} has the unknown role {turn.get(role_key)!r}")
        messages.append(Message(role, _text(turn, text_key, f"turn {number}: ")))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise RowFault("no assistant turn")
    *prompt, last = messages
    _check_turns(prompt)
    return Example(tuple(prompt), last.content)


def _check_turns(prompt: Sequence[Message]) -> None:
    """The prompt alternates, user first (after a system turn), and ends with the user."""
    roles = [message.role for message in prompt]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    if not roles or roles[0] != "user":
        raise RowFault("the conversation does not start with a user turn")
    expected = ["user", "assistant"] * len(roles)
    if roles != expected[: len(roles)] or roles[-1] != "user":
        raise RowFault(f"the turns do not alternate: {', '.join(roles)}")


def _text(record: Mapping[str, Any], field: str, where: str = "") -> str:
    if field not in record:
        raise RowFault(f"{where}no field {field!r} (fields: {_fields(record)})")
    value = record[field]
    if not isinstance(value, str):
        raise RowFault(f"{where}field {field!r} is {_kind(value)}, expected text")
    return _clean(value, field, where)


def _clean(value: str, field: str, where: str = "") -> str:
    text = value.strip()
    if not text:
        raise RowFault(f"{where}field {field!r} is empty")
    if "\x00" in text:
        raise RowFault(f"{where}field {field!r} has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowFault(f"{where}field {field!r} has half a surrogate pair") from None
    return text


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _fields(record: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, record))[:8]) or "none"
