"""Reads answers of a model whose tokenizer is not known: the bytes that its server gives for each token and candidate.

Legend: T response tokens, K top-k.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from profuser.engines.answer_vocabularies import END, END_BYTES
from profuser.engines.answers import MAX_CHARACTER_BYTES
from profuser.engines.base import Response
from profuser.engines.endpoint.tokens import REPLACEMENT, logprob, response

SPECIAL = re.compile(
    "<(\N{FULLWIDTH VERTICAL LINE}|[|]).+\\1>|</?s>|<(bos|eos|pad|unk|start_of_turn|end_of_turn)>".encode(), re.DOTALL
)
"""Spellings of special tokens. A candidate that has one is no text, even in an answer that does not show what ends its turn."""

Entry = Mapping[str, Any]
"""A token as a server gives it: `token`, `bytes`, `logprob`, `top_logprobs`."""
Part = tuple[bytes, float, Sequence[tuple[bytes, float]]]
"""Bytes of a token, its log-probability and its candidates; the end of a turn has no bytes."""
UNLISTED_END: Part = (END_BYTES, -np.inf, ())
"""The end of a turn that a server does not list."""


def read_spelt(
    text: str, reason: str, entries: Sequence[Entry], top_k: int, stop: Sequence[str] = ()
) -> Response | None:
    """Converts an answer with the log-probabilities of its tokens, in OpenAI's form (`choice.logprobs.content`).

    The answer is the tokens whose bytes join to the text; before them there may be thinking that the server separates. One token
    after them is the end of the turn, whose candidates are found by its bytes, or by its name if it has none. A token without bytes
    is a part of a character that a later token spells whole (vLLM): the two are one token, without a distribution.

    Args:
        text: the answer's text.
        reason: `stop` or `length`.
        entries: its tokens.
        top_k: K.
        stop: texts that end an answer, of which tokens may follow it.

    Returns:
        The response, with its own vocabulary; None if the server gives no bytes, or these do not join to the text.
    """
    pieces = [None if (spelt := entry.get("bytes")) is None else bytes(spelt) for entry in entries]
    stops = [one.encode() for one in stop]
    span = _span(pieces, text, reason == "length", stops) if any(pieces) else None
    if span is None or None in pieces[slice(*span)]:
        return None
    after = entries[span[1] :]
    ends = after if reason == "stop" and len(after) == 1 and not _stopped(pieces[span[1] :], stops) else []
    end = _key(ends[0]) if ends else None
    parts = [*_parts(entries[slice(*span)], end)]
    parts += [(END_BYTES, logprob(entry), _candidates(entry, end)) for entry in ends]
    if reason == "stop" and not after:
        parts.append(UNLISTED_END)
    return _response(parts, top_k, reason)


def spelt_text(text: str, reason: str, top_k: int) -> Response:
    """Returns an answer of which only the text is known, a byte at a time, with its own vocabulary."""
    parts: list[Part] = [(bytes([byte]), -np.inf, ()) for byte in text.encode()]
    return _response(parts + [UNLISTED_END] * (reason == "stop"), top_k, reason)


def _span(pieces: Sequence[bytes | None], text: str, cut: bool, stop: Sequence[bytes]) -> tuple[int, int] | None:
    """Returns the range of the tokens that spell a text, possibly after one space; None if there is none.

    All tokens before the end belong to a cut answer, which may end inside a character.
    """
    joined, starts = _joined(pieces), np.cumsum([0, *(len(piece or b"") for piece in pieces)]).tolist()
    content = (text.rstrip(REPLACEMENT) if cut else text).encode()
    found = joined.rfind(content)
    for begin in (0, found, found - 1):
        lead = next((lead for lead in (b"", b" ") if joined[max(0, begin) :].startswith(lead + content)), None)
        if lead is None or begin not in starts:
            continue
        end = begin + len(lead + content)
        if cut and len(joined) - end < MAX_CHARACTER_BYTES and min(joined[end:], default=0x80) >= 0x80:
            last = len(pieces)
        elif not cut and end in starts and _may_follow(pieces[starts.index(end) :], stop):
            last = starts.index(end)
        else:
            continue
        first = starts.index(begin)
        while first < last and pieces[first] is None:
            first += 1
        return first, last
    return None


def _may_follow(after: Sequence[bytes | None], stop: Sequence[bytes]) -> bool:
    """Returns whether tokens after a text end it: none, one that is not blank, or those of a text at which the server stops."""
    return not after or _stopped(after, stop) or (len(after) == 1 and (not after[0] or bool(after[0].strip())))


def _stopped(after: Sequence[bytes | None], stop: Sequence[bytes]) -> bool:
    return _joined(after).startswith(tuple(stop))


def _joined(pieces: Sequence[bytes | None]) -> bytes:
    return b"".join(piece or b"" for piece in pieces)


def _parts(entries: Sequence[Entry], end: bytes | str | None) -> Iterator[Part]:
    """Yields the tokens of a text; one that a server spells only with a later one is joined to that, without candidates."""
    begun: list[float] = []
    for entry in entries:
        begun.append(logprob(entry))
        if entry["bytes"]:
            yield bytes(entry["bytes"]), sum(begun), _candidates(entry, end) if len(begun) == 1 else ()
            begun = []


def _candidates(entry: Entry, end: bytes | str | None) -> list[tuple[bytes, float]]:
    """Returns the bytes and log-probabilities of a token's candidates that are text or the end of the turn."""
    out = []
    own = _key(entry)
    for one in entry.get("top_logprobs") or ():
        key = _key(one)
        if end and key == end:
            out.append((END_BYTES, logprob(one)))
        elif isinstance(key, bytes) and (key == own or not (SPECIAL.fullmatch(key) or _is_part(one, key))):
            out.append((key, logprob(one)))
    return out


def _key(entry: Entry) -> bytes | str:
    """Returns what identifies a token: its bytes, or its name if it has none."""
    return bytes(entry["bytes"]) if entry.get("bytes") else str(entry["token"])


def _is_part(entry: Entry, spelt: bytes) -> bool:
    """Returns whether the bytes are those of a name in which a part of a character is replaced."""
    return REPLACEMENT in entry["token"] and spelt == entry["token"].encode()


def _response(parts: Sequence[Part], top_k: int, reason: str) -> Response:
    vocabulary = {END_BYTES: END}
    ids = [vocabulary.setdefault(piece, len(vocabulary)) for piece, _, _ in parts]
    tops = [
        [(vocabulary.setdefault(piece, len(vocabulary)), value) for piece, value in candidates]
        for _, _, candidates in parts
    ]
    found = response(ids, [own for _, own, _ in parts], tops, top_k, reason)
    return replace(found, vocabulary=tuple(vocabulary))
