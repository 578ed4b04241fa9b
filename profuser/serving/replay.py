"""A stream that goes on where another replica left it: what the client has seen is not sent again.

Only for answers that come out the same (greedy, or with a seed). Tokens may come in other pieces the second time, so texts are
compared, not events.
"""

import json
from typing import Any

from profuser.serving.errors import interrupted

DONE = "[DONE]"


class Replay:
    """The events of one answer over all attempts.

    Args:
        repeatable: whether another attempt gives the same text.
    """

    def __init__(self, repeatable: bool):
        self.repeatable = repeatable
        self._sent: list[bytes] = []
        self._rest = b""
        self._seen: _Seen | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the client has anything of it."""
        return bool(self._sent)

    def restart(self) -> None:
        """Another attempt begins.

        Raises:
            ApiError: 503, the answer has begun and would not come out the same.
        """
        if self.has_begun and not self.repeatable:
            raise interrupted()
        self._rest, self._seen = b"", _Seen.of(self._sent) if self.has_begun else None

    def forward(self, piece: bytes) -> bytes:
        """What of a piece is new to the client: whole events only.

        Raises:
            ApiError: 503, this attempt says something else than the one before it.
        """
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        new = [event for each in events if (event := self._new(each)) is not None]
        if self.repeatable:
            self._sent += new
        elif new:
            self._sent = new[:1]
        return b"".join(event + b"\n\n" for event in new)

    def _new(self, event: bytes) -> bytes | None:
        return event if self._seen is None else self._seen.new(event)


class _Seen:
    """What a client has seen of every choice."""

    def __init__(self) -> None:
        self.left: dict[int, str] = {}
        """Text that it has and that the new attempt has not said yet."""
        self.roles: set[int] = set()
        self.ended: set[int] = set()
        self.has_usage = False

    @classmethod
    def of(cls, events: list[bytes]) -> "_Seen":
        seen = cls()
        for content in filter(None, map(_content, events)):
            for choice in content["choices"]:
                index = choice["index"]
                seen.left[index] = seen.left.get(index, "") + _text(choice)
                seen.roles.add(index)
                if choice.get("finish_reason"):
                    seen.ended.add(index)
            seen.has_usage |= not content["choices"]
        return seen

    def new(self, event: bytes) -> bytes | None:
        """An event without what was seen; None where nothing is left of it."""
        content = _content(event)
        if content is None:
            return event
        if not content["choices"]:
            return None if self.has_usage else event
        content["choices"] = [choice for choice in content["choices"] if self._cut(choice)]
        return b"data: " + json.dumps(content).encode() if content["choices"] else None

    def _cut(self, choice: dict[str, Any]) -> bool:
        """Takes away from a choice what was seen of it; whether anything is left."""
        index, text = choice["index"], _text(choice)
        left = self.left.get(index, "")
        if not (left.startswith(text) or text.startswith(left)):
            raise interrupted()
        self.left[index] = left[len(text) :]
        _set_text(choice, text[len(left) :])
        if index in self.ended and (text[len(left) :] or (choice.get("finish_reason") and self.left[index])):
            raise interrupted()
        ends = bool(choice.get("finish_reason")) and index not in self.ended
        if ends and self.left[index]:
            raise interrupted()
        return bool(text[len(left) :]) or ends or index not in self.roles


def _content(event: bytes) -> dict[str, Any] | None:
    """The JSON of an event; None for the end, comments and errors."""
    data = event.decode().removeprefix("data:").strip()
    if not event.startswith(b"data:") or data == DONE:
        return None
    content = json.loads(data)
    return content if "choices" in content else None


def _text(choice: dict[str, Any]) -> str:
    return (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""


def _set_text(choice: dict[str, Any], text: str) -> None:
    where, name = (choice["delta"], "content") if "delta" in choice else (choice, "text")
    if _text(choice) or text:
        where[name] = text
