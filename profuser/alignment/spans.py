"""Locates the tokens of responses in the responses' bytes, for many rows at once, and checks every byte.

Legend: B rows, N tokens of all rows together, T tokens of one row (T1 = T + 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Integer

from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.errors import AlignmentError
from profuser.signals.ragged import Ragged, offsets_of

SPACE = 0x20


@dataclass(frozen=True, eq=False)
class Spans:
    """Byte spans `[start, end)` of N tokens, relative to the beginning of the row's response.

    A row whose tokens spell one more leading space than the response begins at -1. Spans of refused rows are undefined.
    """

    starts: Int[np.ndarray, "N"]
    ends: Int[np.ndarray, "N"]
    refused: dict[int, str]
    """Rows whose tokens do not spell the response, with the reason."""


def boundaries(
    tokens: TokenBytes, token_ids: Integer[np.ndarray, "T"] | Sequence[int], response: bytes
) -> Int[np.ndarray, "T1"]:
    """Returns the byte offsets of one response's tokens: token t is `response[bounds[t]:bounds[t + 1]]`.

    The tokens may spell one leading space that the response lacks (SentencePiece's dummy prefix, or a template that
    ends in a colon): then `bounds[0]` is -1. A final end-of-turn token has an empty span at the end.

    Raises:
        AlignmentError: the tokens do not spell the response.
    """
    spans = byte_spans(tokens, Ragged.from_rows([token_ids], dtype=np.int64), [response])
    if spans.refused:
        raise AlignmentError(spans.refused[0])
    return np.append(spans.starts, spans.ends[-1:] if len(spans.ends) else [0])


def misspelt(tokens: TokenBytes, token_ids: Ragged, responses: Sequence[bytes]) -> dict[int, str]:
    """Returns rows whose tokens do not spell their response, with the reason: a model that reads them scores another text.

    Takes the arguments of `byte_spans`. Call it once wherever tokenized text is scored.
    """
    return byte_spans(tokens, token_ids, responses).refused


def byte_spans(tokens: TokenBytes, token_ids: Ragged, responses: Sequence[bytes]) -> Spans:
    """Aligns the tokens of B rows with the bytes of their responses.

    Args:
        tokens: the table of the ids' tokenizer.
        token_ids: ids of the response tokens, including the final end-of-turn token if there is one.
        responses: the response of each row as bytes, without any leading space of the template.

    Returns:
        Spans of all tokens, with a reason for each refused row.
    """
    flat = np.asarray(token_ids.values, dtype=np.int64)
    known = (flat >= 0) & (flat < tokens.vocab_size)
    flat = np.where(known, flat, 0)
    lengths = tokens.lengths[flat]
    offsets = offsets_of(lengths)
    row_offsets = offsets[token_ids.offsets]
    refused = _misplaced(tokens, token_ids, flat, known)
    stream = tokens.spell(flat)
    leads = np.zeros(len(responses), dtype=np.int64)
    for row, (begin, end, response) in enumerate(
        zip(row_offsets[:-1].tolist(), row_offsets[1:].tolist(), responses, strict=True)
    ):
        spelt = stream[begin:end]
        if spelt == response:
            continue
        leads[row] = 1
        if len(spelt) != len(response) + 1 or spelt[0] != SPACE or spelt[1:] != response:
            refused.setdefault(row, _difference(spelt, response))
    starts = offsets[:-1] - np.repeat(row_offsets[:-1] + leads, token_ids.lengths)
    return Spans(starts=starts, ends=starts + lengths, refused=refused)


def _misplaced(
    tokens: TokenBytes, token_ids: Ragged, flat: Int[np.ndarray, "N"], known: Bool[np.ndarray, "N"]
) -> dict[int, str]:
    """Returns rows with an unknown id, or with a token without bytes that is not a final end of turn."""
    last = np.zeros(len(flat), dtype=bool)
    last[token_ids.offsets[1:][token_ids.lengths > 0] - 1] = True
    wrong = ~known | ((tokens.lengths[flat] == 0) & ~(last & (tokens.roles[flat] == Role.END)))
    refused: dict[int, str] = {}
    for place in np.flatnonzero(wrong).tolist():
        row = int(np.searchsorted(token_ids.offsets, place, side="right")) - 1
        index, position = int(token_ids.values[place]), place - int(token_ids.offsets[row])
        reason = f"token id {index} at position {position} has no bytes and is not a final end of turn; check end_ids"
        if not known[place]:
            reason = f"token id {index} at position {position} is outside the vocabulary of {tokens.vocab_size}"
        refused.setdefault(row, reason)
    return refused


def _difference(spelt: bytes, response: bytes) -> str:
    """Describes where and how the bytes of the tokens differ from the response."""
    if spelt[:1] == b" " != response[:1]:
        spelt = spelt[1:]
    same = next(
        (i for i, (a, b) in enumerate(zip(spelt, response, strict=False)) if a != b), min(len(spelt), len(response))
    )
    near = slice(max(same - 8, 0), same + 8)
    return (
        f"tokens spell {len(spelt)} bytes, the response has {len(response)}; they differ at byte {same}: "
        f"{spelt[near]!r} against {response[near]!r}"
    )
