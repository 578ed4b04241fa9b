"""The record shapes: one record for each, with the fields it needs, those it uses, and how it is parsed.

To add a shape, add its record to `SHAPES`; a new name belongs in `corpus.format` too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from profuser.corpus.rows import is_turn
from profuser.corpus.trees import best_path
from profuser.corpus.turns import (
    SPEAKER,
    THOUGHTS,
    Message,
    Turn,
    as_context,
    assistant,
    parse_history,
    parse_transcript,
    parse_turns,
    user,
)
from profuser.corpus.values import ABSENT, RowFault, find, is_blank, optional_text, text_of, value_of
from profuser.recipe.preparing import FieldsConfig

Record = Mapping[str, Any]
SYSTEM = ("system", "system_prompt", "system_message")
CHOSEN_FOR = ("prompt", "question", "query", "instruction", "input")
"""Fields of the prompt of a preferred response, the most likely first."""
TASK_FIELDS = ("instruction", "input", "history", "context", "contexts", "passage", "document", "documents", "article")
OTHER_FIELDS = ("background", "choices", "options", "tools", "functions", "image", "images", "audio", "video")
CHANGES_MEANING = frozenset((*SYSTEM, *TASK_FIELDS, *OTHER_FIELDS, *THOUGHTS))
"""Fields that would change what a prompt or response means: named if a shape does not use them, whatever they hold."""
METADATA = re.compile(
    r"(.*_)?(ids?|names?|idx|index|uuid|guid|hash|sha256|md5|key|source|src|origin|dataset|split|subset|config|models?|generator|author"
    r"|annotator|user|username|urls?|link|uri|domain|file|filename|path|licen[cs]e|lang|language|locale|country|scores?|rating"
    r"|rank|quality|labels?|tags?|topics?|category|categories|subject|type|kind|style|level|difficulty|status|state|date|time"
    r"|timestamp|at|version)",
    re.IGNORECASE,
)
"""Names of fields that describe a record rather than belong to its text: not named if a shape does not use them."""


class Conversation(NamedTuple):
    """The turns of a record."""

    turns: list[Turn]
    field: str = "turns"
    """Name of the conversation, for reasons."""
    left_out: int = 0
    """Turns of the record that are not among `turns`."""


Parser = Callable[[Record], Conversation]


@dataclass(frozen=True)
class Shape:
    """One shape of records."""

    name: str
    """Value of `corpus.format`; shapes may share one."""
    needs: tuple[str, ...]
    """Fields by which the shape is recognised."""
    uses: tuple[str, ...]
    """Further fields that it uses."""
    parse: Parser
    without: tuple[str, ...] = ()
    """Fields that another shape would use: with one of them a record is not of this shape."""

    def fits(self, record: Record) -> bool:
        """Returns whether a record has the fields of this shape."""
        has_all = all(find(record, field) is not ABSENT for field in self.needs)
        return has_all and all(is_blank(find(record, field)) for field in self.without)

    def unused(self, record: Record) -> list[str]:
        """Returns the fields of a record that this shape does not use, and that hold text or would change its meaning."""
        used = {field.partition(".")[0] for field in (*self.needs, *self.uses)} | {*self.needs, *self.uses}
        left = [name for name in record if name not in used and not is_blank(record[name])]
        return [n for n in left if n in CHANGES_MEANING or (_holds_text(record[n]) and not METADATA.fullmatch(n))]


def _holds_text(value: Any) -> bool:
    """Returns whether a value is text with a letter (in a CSV, numbers are text too), or a list of such texts or of turns."""
    if isinstance(value, list):
        return any((isinstance(item, str) and _holds_text(item)) or is_turn(item) for item in value)
    return isinstance(value, str) and any(map(str.isalpha, value))


def _listed(field: str) -> Parser:
    """Returns the parser of a shape whose turns are a list in one field."""

    def parse(record: Record) -> Conversation:
        return Conversation(_with_system(parse_turns(value_of(record, field), field), record, SYSTEM), field)

    return parse


def pair(
    question: str,
    answer: str,
    contexts: Sequence[str],
    systems: Sequence[str] = SYSTEM,
    history: Sequence[str] = ("history",),
) -> Parser:
    """Returns the parser of a shape that has a prompt in one field and its response in another, each as text or turns.

    Args:
        question: field of the prompt.
        answer: field of the response.
        contexts: fields that follow the prompt after a blank line.
        systems: fields of which one may hold the system turn.
        history: fields of which one may hold earlier turns.
    """

    def parse(record: Record) -> Conversation:
        asked = _with_context(as_context(_said(record, question, user)), record, contexts)
        earlier = [turn for field in history for turn in parse_history(record.get(field))]
        turns = [*earlier, *asked, *_said(record, answer, assistant)]
        return Conversation(_with_system(turns, record, systems))

    return parse


def _said(record: Record, field: str, speaker: Callable[[str], Turn]) -> list[Turn]:
    """Parses a field that holds turns, or the text of one."""
    value = value_of(record, field)
    is_list = isinstance(value, list) and bool(value) and is_turn(value[0])
    return parse_turns(value, field) if is_list else [speaker(text_of(record, field))]


def _with_context(asked: list[Turn], record: Record, fields: Sequence[str]) -> list[Turn]:
    """Puts the record's further text behind the last user turn of a prompt, after a blank line."""
    context = optional_text(record, *fields)
    places = [place for place, turn in enumerate(asked) if turn.message.role == "user"]
    if not context or not places:
        return asked
    place = places[-1]
    text = f"{asked[place].message.content}\n\n{context}"
    return [*asked[:place], asked[place]._replace(message=Message("user", text)), *asked[place + 1 :]]


def _with_system(turns: list[Turn], record: Record, fields: Sequence[str]) -> list[Turn]:
    """Puts the record's system text first, if it has one."""
    texts = dict.fromkeys(optional_text(record, field) for field in fields)
    texts |= dict.fromkeys(turn.message.content for turn in turns[:1] if turn.message.role == "system")
    texts.pop("", None)
    if len(texts) > 1:
        raise RowFault("two system texts that differ")
    rest = turns[1:] if turns and turns[0].message.role == "system" else turns
    return [*(Turn(Message("system", text)) for text in texts), *rest]


def _chosen(prompt: str | None, contexts: Sequence[str]) -> Parser:
    """Returns the parser of preferred responses: a whole conversation, or what follows the prompt. Only the last turn is learnt."""

    def parse(record: Record) -> Conversation:
        chosen = _spoken(record, "chosen", assistant)
        asked = _with_context(_spoken(record, prompt, user), record, contexts) if prompt else []
        if not chosen or chosen[0].message.role not in ("system", "user"):
            if not asked:
                raise RowFault("chosen has no prompt: neither a field beside it nor text 'Human: ... Assistant: ...'")
            chosen = [*asked, *chosen]
        elif asked and asked[-1].message.content not in [turn.message.content for turn in chosen]:
            raise RowFault(f"{prompt} is not the prompt in chosen")
        return Conversation(_with_system([*as_context(chosen[:-1]), *chosen[-1:]], record, SYSTEM), "chosen")

    return parse


def _spoken(record: Record, field: str, speaker: Callable[[str], Turn]) -> list[Turn]:
    """Parses a field that holds a turn, turns, text with named speakers, or the text of one turn."""
    value = record[field]
    if isinstance(value, str) and SPEAKER.match(value):
        return parse_transcript(value, field)
    return parse_turns([value], field) if is_turn(value) else _said(record, field, speaker)


def _tree(record: Record) -> Conversation:
    turns, left_out = best_path(record["prompt"])
    return Conversation(turns, "prompt", left_out)


def _qa(question: str, answer: str, *contexts: str, without: tuple[str, ...] = ()) -> Shape:
    contexts = (*contexts, "context")
    parse = pair(question, answer, contexts)
    return Shape("qa", (question, answer), (*contexts, *SYSTEM, "history"), parse, without)


def _preference(prompt: str | None, before: Sequence[str]) -> Shape:
    """Returns the shape of a preferred response and the field of its prompt, unless one of the fields `before` has it."""
    contexts = [field for field in ("input", "context") if prompt and field != prompt]
    needs = ("chosen", prompt) if prompt else ("chosen",)
    return Shape("preference", needs, (*contexts, *SYSTEM, "rejected"), _chosen(prompt, contexts), tuple(before))


def mapped(fields: FieldsConfig) -> Shape:
    """Returns the shape of records whose fields the recipe names."""
    contexts, systems = ([name] if name else [] for name in (fields.context, fields.system))
    others = (fields.category, fields.tests, fields.entry_point, fields.json_schema)
    uses = (*contexts, *systems, *(name for name in others if name))
    parse = pair(fields.prompt, fields.response, contexts, systems, history=())
    return Shape("fields", (fields.prompt, fields.response), uses, parse)


SHAPES = (
    Shape("messages", ("messages",), SYSTEM, _listed("messages")),
    Shape("sharegpt", ("conversations",), SYSTEM, _listed("conversations")),
    Shape(
        "alpaca", ("instruction", "output"), ("input", *SYSTEM, "history"), pair("instruction", "output", ("input",))
    ),
    _qa("question", "answer"),
    _qa("prompt", "response"),
    _qa("prompt", "completion"),
    _qa("instruction", "response", "input"),
    _qa("question", "response"),
    _qa("query", "response"),
    _qa("problem", "solution"),
    _qa("input", "output", without=("instruction",)),
    Shape("sharegpt", ("conversation",), SYSTEM, _listed("conversation")),
    *(_preference(prompt, CHOSEN_FOR[:place]) for place, prompt in enumerate(CHOSEN_FOR)),
    _preference(None, CHOSEN_FOR),
    Shape("oasst", ("prompt.replies",), ("text", "role"), _tree),
)
"""All shapes, the most likely first. Their order decides between shapes that both fit."""
