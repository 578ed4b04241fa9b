"""Parses the turns of a conversation, and cuts it into prompts with their responses."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from profuser.corpus.rows import TURN_FIELDS, type_name
from profuser.corpus.tool_calls import (
    CALLS,
    RESULT,
    ToolLabel,
    calls_in_text,
    calls_of,
    check_results,
    has_calls,
    label_of,
)
from profuser.corpus.values import RowFault, clean_text, is_blank, named_fields, shortened, text_of

TurnsLearnt = Literal["all", "last"]
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
RESULT_ROLES = ("tool", "function", "ipython", "observation", "tool_response")
CALL_ROLES = ("function_call", "tool_call")
"""Roles of turns whose text is the JSON of a call."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ORDER = re.compile("(?:u(?:ct+)*a)*(?:u(?:ct+)*c?)?")
"""Turns of user (u), assistant (a), tool calls (c) and tools (t)."""
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Message(NamedTuple):
    """One turn of a conversation.

    The role is system, user, assistant, or in a prompt `tool_calls` (its content is canonical JSON, see `tool_calls`) or `tool`.
    """

    role: str
    content: str


class PromptedResponse(NamedTuple):
    """An instruction and its ground-truth response."""

    messages: tuple[Message, ...]
    """The prompt; it ends with a user turn or a tool's result."""
    response: str


class Turn(NamedTuple):
    """A turn as read."""

    message: Message
    is_context: bool = False
    """Whether an assistant turn is not to be learnt."""
    unused: tuple[str, ...] = ()
    """Fields that would change the turn's meaning, and that are not used."""
    label: ToolLabel = ToolLabel()
    """The call that a tool's result answers, as far as it is named."""


def user(text: str) -> Turn:
    """Builds a user turn."""
    return Turn(Message("user", text))


def assistant(text: str) -> Turn:
    """Builds an assistant turn."""
    return Turn(Message("assistant", text))


def as_context(turns: Sequence[Turn]) -> list[Turn]:
    """Marks turns as not to be learnt."""
    return [turn._replace(is_context=True) for turn in turns]


def parse_turns(value: Any, field: str) -> list[Turn]:
    """Parses a list of turns, or its JSON text; a turn is an object, or a table's map. An empty system turn is left out.

    Raises:
        RowFault: it is something else, or a turn cannot be used.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowFault(f"{field} is text that is not a JSON list of turns") from None
    if not isinstance(value, list):
        raise RowFault(f"{field} is {type_name(value)}, expected a list of turns")
    turns = [_parse_turn(turn, number) for number, turn in enumerate(value, 1)]
    return [turn for turn in turns if turn is not None]


def _parse_turn(turn: Any, number: int) -> Turn | None:
    """Parses a turn; None for an empty system turn."""
    if isinstance(turn, list) and turn and all(isinstance(pair, tuple) and len(pair) == 2 for pair in turn):
        turn = dict(turn)  # A column of Arrow's type map.
    if not isinstance(turn, Mapping):
        raise RowFault(f"a turn is {type_name(turn)}, expected an object (turn {number})")
    role_field, text_field = next((pair for pair in TURN_FIELDS if pair[0] in turn), TURN_FIELDS[0])
    if role_field not in turn:
        raise RowFault(f"a turn has no role (turn {number}; {named_fields(turn)})")
    role = turn[role_field]
    details = f" (turn {number})"
    if role in RESULT_ROLES:
        return Turn(Message(RESULT, _content(turn, text_field, details)), label=label_of(turn))
    if not isinstance(role, str) or role not in (*ROLES, *CALL_ROLES):
        raise RowFault(f"unknown role {repr(role)[:40]}{details}")
    if ROLES.get(role) == "system" and turn.get(text_field) == "":
        return None
    unused = tuple(name for name in THOUGHTS if not is_blank(turn.get(name)))
    return Turn(_message(turn, role, text_field, details), turn.get("weight") == 0, unused)


def _message(turn: Mapping[str, Any], role: str, text_field: str, details: str) -> Message:
    """Parses the message of a turn that is not a tool's."""
    if role in CALL_ROLES:
        return Message(CALLS, calls_in_text(_content(turn, text_field, details), details))
    if not has_calls(turn):
        return Message(ROLES[role], _content(turn, text_field, details))
    if ROLES[role] != "assistant":
        raise RowFault(f"a tool call in a turn of {role}{details}")
    text = "" if is_blank(turn.get(text_field)) else _content(turn, text_field, details)
    return Message(CALLS, calls_of(turn, text, details))


def _content(turn: Mapping[str, Any], field: str, details: str) -> str:
    """Returns a turn's text; text parts are joined."""
    parts = turn.get(field)
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        return text_of(turn, field, details)
    for kind in (part.get("type", "text") for part in parts):
        if kind != "text":
            raise RowFault(f"{field} has a part that is not text: {ascii(kind)[:40]}{details}")
    texts = [part.get("text") for part in parts]
    is_text = bool(texts) and all(isinstance(text, str) for text in texts)
    return clean_text("".join(texts) if is_text else parts, field, details)


def parse_transcript(text: str, field: str) -> list[Turn]:
    r"""Parses text of the form `\n\nHuman: ... \n\nAssistant: ...`; an empty last turn is left out."""
    pieces = SPEAKER.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise RowFault(f"{field} has no prompt: neither a field beside it nor a text 'Human: ... Assistant: ...'")
    said = [(SPEAKERS[speaker], content) for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)]
    if not said[-1][1].strip():
        said.pop()
    return [
        Turn(Message(role, clean_text(content, field, f" (turn {n})"))) for n, (role, content) in enumerate(said, 1)
    ]


def parse_history(value: Any) -> list[Turn]:
    """Parses earlier turns: a list of turns, or of pairs of question and answer; nothing if it is blank."""
    if is_blank(value):
        return []
    if isinstance(value, list) and isinstance(value[0], Mapping):
        return parse_turns(value, "history")
    out = []
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowFault(f"history has {type_name(pair)}, expected pairs of question and answer")
        out += [user(clean_text(pair[0], "history")), assistant(clean_text(pair[1], "history"))]
    return out


def cut(turns: Sequence[Turn], field: str, learnt: TurnsLearnt) -> tuple[list[PromptedResponse], int]:
    """Cuts a conversation into its examples: each learnt assistant turn, with the turns before it as the prompt.

    Args:
        turns: the conversation.
        field: its name, for reasons.
        learnt: all assistant turns, or the last one alone; those marked as context are passed over.

    Returns:
        The examples, and the number of turns after the last response, which are not used.

    Raises:
        RowFault: user and assistant do not alternate, beginning with the user; tool calls and results do not belong together; or
            no assistant turn is to be learnt, or with `last` a tool call: its bytes differ by template.
    """
    messages = [turn.message for turn in turns]
    roles = [message.role for message in messages]
    if "assistant" not in roles and CALLS not in roles:
        raise RowFault(f"no assistant turn (of {len(roles)} turns)")
    if roles[-1] == "system":
        raise RowFault(f"{field} end with a system turn")
    _check_order(roles, field)
    _check_tools(turns, roles)
    places = [n for n, turn in enumerate(turns) if roles[n] in ("assistant", CALLS) and not turn.is_context]
    if not places:
        raise RowFault(f"every assistant turn has weight 0 (of {len(roles)} turns)")
    answers = [place for place in places if roles[place] == "assistant"]
    if not answers or (learnt == "last" and roles[places[-1]] == CALLS):
        raise RowFault(f"the response is a tool call, which each template writes differently ({shortened(roles)})")
    chosen = answers if learnt == "all" else answers[-1:]
    examples = [PromptedResponse(tuple(messages[:place]), messages[place].content) for place in chosen]
    return examples, len(turns) - 1 - answers[-1]


def _check_order(roles: Sequence[str], field: str) -> None:
    """Checks that each user turn is followed by tool calls, if any, each with its results, and then an assistant turn."""
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken[0] != "user":
        raise RowFault(f"{field} do not start with a user turn ({shortened(roles)})")
    order = "".join({"user": "u", "assistant": "a", CALLS: "c", RESULT: "t"}.get(role, "s") for role in spoken)
    if ORDER.fullmatch(order):
        return
    what = "user and assistant do not alternate"
    if re.search("(?<![ct])t", order):
        what = "a tool's result follows no tool call"
    elif re.search("c[^t]", order):
        what = "a tool call has no result"
    raise RowFault(f"{what} ({shortened(roles)})")


def _check_tools(turns: Sequence[Turn], roles: Sequence[str]) -> None:
    """Checks that the results of tools answer the calls before them."""
    for place in (place for place, role in enumerate(roles) if role == CALLS):
        end = next((n for n in range(place + 1, len(roles)) if roles[n] != RESULT), len(roles))
        labels = [turn.label for turn in turns[place + 1 : end]]
        check_results(turns[place].message.content, labels, end == len(roles), f" (after turn {place + 1})")
