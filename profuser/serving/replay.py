"""Continues a stream on another replica without repeating what the client has already received.

Only for reproducible answers (greedy, or with a seed). The second attempt may split the text differently, so texts are compared,
not events.
"""

import json
import logging
from collections import Counter, defaultdict
from typing import Any

from profuser.serving.errors import internal, interrupted

FIELDS = ("reasoning", "content", "text")
"""Texts of a choice: those of a chat's answer, the reasoning first, or that of a completion."""
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
    """Texts that a client has received of every choice: its reasoning and its answer.

    Args:
        events: sent to the client.
    """

    def __init__(self, events: list[bytes]):
        self.repeated: Counter[tuple[int, str]] = Counter()
        """Characters that the new attempt has repeated, by choice and field."""
        self.ended: set[int] = set()
        self.has_usage, self.has_end = False, any(map(_is_end, events))
        texts: defaultdict[int, dict[str, str]] = defaultdict(lambda: dict.fromkeys(FIELDS, ""))
        for content in filter(None, map(_content, events)):
            for choice in content["choices"]:
                for field in FIELDS:
                    texts[choice["index"]][field] += _texts(choice).get(field) or ""
                if choice.get("finish_reason"):
                    self.ended.add(choice["index"])
            self.has_usage |= not content["choices"]
        self.texts = dict(texts)

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
        """Removes the texts already seen from a choice, and returns whether anything is left."""
        index, texts, ends = choice["index"], _texts(choice), bool(choice.get("finish_reason"))
        if index not in self.texts:
            return True
        new = [field for field in FIELDS if self._cut_field(index, field, texts)]
        rest = [field for field, seen in self.texts[index].items() if self.repeated[index, field] < len(seen)]
        if (rest and (new or ends)) or (new and index in self.ended):
            raise interrupted()
        texts.pop("role", None)
        return bool(new) or (ends and index not in self.ended)

    def _cut_field(self, index: int, field: str, texts: dict[str, Any]) -> bool:
        """Removes what was seen of one text; raises ApiError if it differs."""
        text, seen, start = texts.get(field) or "", self.texts[index][field], self.repeated[index, field]
        again = seen[start : start + len(text)]
        if not text.startswith(again):
            raise interrupted()
        self.repeated[index, field] += len(again)
        if text:
            texts[field] = text[len(again) :]
        return len(text) > len(again)


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


def _texts(choice: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a choice that holds its texts."""
    return choice.get("delta", choice)
