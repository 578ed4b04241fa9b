"""Parses tool calls of records into one canonical form: the content of a message with the role `tool_calls`.

The content is the JSON of `{"content": text beside the calls, "tool_calls": [...]}`. A call has OpenAI's form, except that its
arguments are an object: `{"type": "function", "id": ..., "function": {"name": ..., "arguments": {...}}}`; the id is optional.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from profuser.corpus.rows import CALL_FIELDS, type_name
from profuser.corpus.values import RowFault, clean_text, is_blank

CALLS, RESULT = "tool_calls", "tool"
"""Roles of a message that calls tools, and of a tool's result."""


class ToolLabel(NamedTuple):
    """The call that a tool's result names."""

    call_id: Any = None
    function: Any = None


def label_of(turn: Mapping[str, Any]) -> ToolLabel:
    """Returns the label of a tool's turn."""
    return ToolLabel(*(None if is_blank(turn.get(field)) else turn[field] for field in ("tool_call_id", "name")))


def has_calls(turn: Mapping[str, Any]) -> bool:
    """Returns whether an assistant turn calls tools."""
    return any(not is_blank(turn.get(field)) for field in CALL_FIELDS)


def calls_of(turn: Mapping[str, Any], text: str, details: str) -> str:
    """Returns the canonical form of an assistant turn that calls tools; raises RowFault if a call cannot be used.

    Args:
        turn: it has `tool_calls`, or the older `function_call`.
        text: what it writes beside the calls.
        details: the turn's place, for reasons.
    """
    calls = next(turn[field] for field in CALL_FIELDS if not is_blank(turn.get(field)))
    return canonical(calls if isinstance(calls, list) else [calls], text, details)


def calls_in_text(text: str, details: str) -> str:
    """Returns the canonical form of a turn whose text is the JSON of a call, or of a list of calls (ShareGPT)."""
    calls = _parsed(text, f"a tool call is not JSON{details}")
    return canonical(calls if isinstance(calls, list) else [calls], "", details)


def canonical(calls: list[Any], text: str, details: str) -> str:
    """Returns the canonical form of calls and of the text beside them; raises RowFault if a call cannot be used."""
    if not calls:
        raise RowFault(f"a turn of tool calls has none{details}")
    found = {"content": text, "tool_calls": [_call(call, details) for call in calls]}
    try:
        written = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise RowFault(f"a tool call has arguments that JSON cannot hold{details}") from None
    return clean_text(written, "a tool call", details)


def _call(call: Any, details: str) -> dict[str, Any]:
    """Returns the canonical form of a call, given with its function inside or directly."""
    if not isinstance(call, Mapping):
        raise RowFault(f"a tool call is {type_name(call)}, expected an object{details}")
    kind = call.get("type")
    if not is_blank(kind) and kind != "function":
        raise RowFault(f"a tool call is not of a function: {ascii(kind)[:40]}{details}")
    function = call if is_blank(call.get("function")) else call["function"]
    if not isinstance(function, Mapping) or is_blank(function.get("name")):
        raise RowFault(f"a tool call names no function{details}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = _parsed(arguments, f"a tool call has arguments that are not JSON{details}")
    arguments = {} if is_blank(arguments) else arguments
    if not isinstance(arguments, Mapping):
        raise RowFault(f"a tool call has arguments that are {type_name(arguments)}, expected an object{details}")
    label = {} if is_blank(call.get("id")) else {"id": clean_text(call["id"], "the id of a tool call", details)}
    name = clean_text(function["name"], "the name of a called function", details)
    return {"type": "function", **label, "function": {"name": name, "arguments": dict(arguments)}}


def _parsed(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowFault(reason) from None


def check_results(calls: str, results: Sequence[ToolLabel], is_last: bool, details: str) -> None:
    """Checks that each tool's result answers the call at the same place: by its own label, if it has one.

    Args:
        calls: a turn of calls in canonical form.
        results: labels of the results that follow it.
        is_last: whether the conversation ends with these results, so that some may be missing.
        details: the place, for reasons.

    Raises:
        RowFault: they are more or fewer than the calls, or in another order.
    """
    made = json.loads(calls)["tool_calls"]
    if len(results) > len(made) or (len(results) < len(made) and not is_last):
        raise RowFault(f"tool calls and their results differ in number{details}")
    for call, given in zip(made, results, strict=False):
        own = ToolLabel(call.get("id"), call["function"]["name"])
        if any(None not in (ours, theirs) and ours != theirs for ours, theirs in zip(own, given, strict=True)):
            raise RowFault(f"the tools' results are not in the order of their calls{details}")
