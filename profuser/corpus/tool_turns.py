"""Converts messages into the turns that chat templates read, with their tool calls and the results.

A tool's result answers the call at the same place in the turn of calls before it, so its id and name are those of the call.
Templates differ in the form that they read, see `forms`; and many leave out what they do not know without an error, so probes are
rendered in place of the texts to see whether they are written.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from profuser.corpus.special_tokens import Commands, protect
from profuser.corpus.tool_calls import CALLS, RESULT
from profuser.corpus.turns import Message

Turns = list[dict[str, Any]]
PREFIX = f"probe{secrets.token_hex(6)}"


def uses_tools(messages: Sequence[Message]) -> bool:
    """Returns whether a conversation has tool calls or results."""
    return any(message.role in (CALLS, RESULT) for message in messages)


def as_turns(messages: Sequence[Message], numbered: bool = False) -> Turns:
    """Returns a conversation in the form that Transformers documents: a call's arguments are an object.

    Args:
        messages: the conversation.
        numbered: whether calls get ids of nine digits instead of their own.
    """
    turns: Turns = []
    calls: list[dict[str, Any]] = []
    answered = num_ids = 0
    for role, content in messages:
        if role == CALLS:
            turn = json.loads(content)
            calls, answered = turn["tool_calls"], 0
            for call in calls if numbered else ():
                call["id"], num_ids = f"{num_ids:09d}", num_ids + 1
            turns.append({"role": "assistant", **turn})
        elif role == RESULT and answered < len(calls):
            call = calls[answered]
            label = {"tool_call_id": call["id"]} if "id" in call else {}
            turns.append({"role": role, "name": call["function"]["name"], **label, "content": content})
            answered += 1
        else:
            turns.append({"role": role, "content": content})
    return turns


def forms(messages: Sequence[Message]) -> Iterator[Turns]:
    """Yields a conversation in the forms that templates read, the most common first.

    These are the form that Transformers documents; the same with ids of nine digits, without which Mistral's templates refuse a
    call; and the first with arguments as JSON text, as in OpenAI's interface, which DeepSeek's templates read.
    """
    yield as_turns(messages)
    if uses_tools(messages):
        yield as_turns(messages, numbered=True)
        turns = as_turns(messages)
        for call in (call for turn in turns for call in turn.get("tool_calls", ())):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        yield turns


def probes(messages: Sequence[Message]) -> list[Message]:
    """Returns a conversation with unique words in place of its texts, and of its calls' names and arguments."""
    out = []
    for place, (role, content) in enumerate(messages):
        word = f"{PREFIX}{place}x"
        if role == CALLS:
            turn = json.loads(content)
            turn["content"] = f"{word}t" if turn["content"] else ""
            for number, call in enumerate(turn["tool_calls"]):
                call["function"] = {"name": f"{word}{number}n", "arguments": {f"{word}{number}a": 0}}
            content = json.dumps(turn, ensure_ascii=False)
        else:
            content = f"{word}r"
        out.append(Message(role, content))
    return out


def left_out(probed: Turns, rendered: str, only_tools: bool = False) -> str | None:
    """Names the first of the texts that a rendered conversation of `probes` lacks; None if it has all.

    Args:
        probed: the conversation of `probes`.
        rendered: what a template writes for it.
        only_tools: whether only calls, their texts and results count.
    """
    for turn in probed:
        if turn["role"] == RESULT and turn["content"] not in rendered:
            return "a tool's result"
        for call in turn.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            # Arguments as text must not be encoded a second time.
            if (
                name not in rendered
                or (arguments if isinstance(arguments, str) else next(iter(arguments))) not in rendered
            ):
                return "a tool call"
        if "tool_calls" in turn and turn["content"] and turn["content"] not in rendered:
            return "the text beside a tool call"
        if not (only_tools or "tool_calls" in turn) and turn["content"] not in rendered:
            return f"the {turn['role']} turn"
    return None


def protected(messages: Sequence[Message], strings: Commands) -> list[Message]:
    """Marks the commands that a conversation spells out, see `protect`; in tool calls, those in each of their texts."""

    def marked(text: str) -> str:
        return protect(text, strings)

    return [Message(role, _each_text(role, content, marked)) for role, content in messages]


def strings_of(message: Message) -> list[str]:
    """Returns the texts of a message: of tool calls every text in them; else its content."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _each_text(*message, note)
    return found


def _each_text(role: str, content: str, change: Callable[[str], str]) -> str:
    """Applies a function to each text of a message."""
    if role != CALLS:
        return change(content)
    turn = json.loads(content)
    turn["content"] = change(turn["content"]) if turn["content"] else ""
    for call in turn["tool_calls"]:
        call |= {"id": change(call["id"])} if "id" in call else {}
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        call["function"] = {"name": change(name), "arguments": _changed(arguments, change)}
    return json.dumps(turn, ensure_ascii=False, separators=(",", ":"))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Applies a function to the texts in a JSON value, and to its objects' keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return {change(key): _changed(item, change) for key, item in value.items()} if isinstance(value, dict) else value
