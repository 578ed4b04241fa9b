"""Continues a stream on another replica without repeating what the client has already received.

Only for reproducible answers (greedy, or with a seed). The second attempt may split the text differently, so texts are compared,
not events.
"""

import json
import logging
from collections import Counter, defaultdict
from typing import Any

from profuser.serving.errors import internal, interrupted

log = logging.getLogger("ray.serve")


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
        """Whether the client has received anything."""
        return bool(self._sent)

    def restart(self) -> None:
        """Starts another attempt.

        Raises:
            ApiError: 503, the answer has begun and is not repeatable.
        """
        if self.has_begun and not self.repeatable:
            raise interrupted()
        self._rest, self._seen = b"", _Seen(self._sent) if self.has_begun else None

    def forward(self, piece: bytes) -> bytes:
        """Returns the events of a piece that are new to the client; whole events only.

        Raises:
            ApiError: 503, this attempt's text differs from the previous one's; 500, the model has failed.
        """
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        new = [event for each in events if (event := self._new(each)) is not None]
        if self.repeatable:
            self._sent += new
        elif new:
            self._sent = new[:1]
        return b"".join(event + b"\n\n" for event in new)

    def _new(self, event: bytes) -> bytes | None:
        if event.startswith(b'data: {"error"'):
            _check_error(event)
        return event if self._seen is None else self._seen.new(event)


class _Seen:
    """Text that a client has received of every choice.

    Args:
        events: sent to the client.
    """

    def __init__(self, events: list[bytes]):
        self.repeated: Counter[int] = Counter()
        """Characters that the new attempt has repeated."""
        self.ended: set[int] = set()
        self.has_usage, self.has_end = False, any(map(_is_end, events))
        texts: defaultdict[int, list[str]] = defaultdict(list)
        for content in filter(None, map(_content, events)):
            for choice in content["choices"]:
                texts[choice["index"]].append(_text(choice))
                if choice.get("finish_reason"):
                    self.ended.add(choice["index"])
            self.has_usage |= not content["choices"]
        self.texts = {index: "".join(parts) for index, parts in texts.items()}

    def new(self, event: bytes) -> bytes | None:
        """Returns an event without the text already seen; None if nothing is left."""
        if _is_end(event):
            return None if self.has_end else event
        content = _content(event)
        if content is None:
            return event
        if not content["choices"]:
            return None if self.has_usage else event
        content["choices"] = [choice for choice in content["choices"] if self._cut(choice)]
        return b"data: " + json.dumps(content).encode() if content["choices"] else None

    def _cut(self, choice: dict[str, Any]) -> bool:
        """Removes the text already seen from a choice, and returns whether anything is left."""
        index, text, ends = choice["index"], _text(choice), bool(choice.get("finish_reason"))
        seen, start = self.texts.get(index, ""), self.repeated[index]
        again = seen[start : start + len(text)]
        new = text[len(again) :]
        self.repeated[index] += len(again)
        stops_short = ends and self.repeated[index] < len(seen)
        if not text.startswith(again) or stops_short or (new and index in self.ended):
            raise interrupted()
        if index not in self.texts:
            return True
        _set_text(choice, new)
        choice.get("delta", {}).pop("role", None)
        return bool(new) or (ends and index not in self.ended)


def _is_end(event: bytes) -> bool:
    return event.removeprefix(b"data:").strip() == b"[DONE]"


def _content(event: bytes) -> dict[str, Any] | None:
    """Parses an event's JSON; None for the end, comments and errors."""
    if not event.startswith(b"data:") or _is_end(event):
        return None
    content = json.loads(event.removeprefix(b"data:"))
    return content if "choices" in content else None


def _check_error(event: bytes) -> None:
    """Raises a 500 for a failure of the model, without its details."""
    code = json.loads(event.removeprefix(b"data:"))["error"].get("code")
    if not isinstance(code, int) or code >= 500:
        log.error("a model failed while it answered: %s", event[:2000].decode(errors="replace"))
        raise internal()


def _text(choice: dict[str, Any]) -> str:
    return (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""


def _set_text(choice: dict[str, Any], text: str) -> None:
    where, name = (choice["delta"], "content") if "delta" in choice else (choice, "text")
    if _text(choice) or text:
        where[name] = text
