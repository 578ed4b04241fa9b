"""Finds the first token that a tokenizer uses for given bytes in the middle of a response.

A next-token distribution over the target's vocabulary needs only the first token of each candidate.
"""

from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32

from profuser.alignment.token_bytes import TokenBytes

NOT_MAPPED = -1


def first_tokens(tokens: TokenBytes, texts: Sequence[bytes]) -> Int32[np.ndarray, "texts"]:
    """Returns the first token of each byte string's tokenization, -1 where there is none.

    Bytes that are valid UTF-8 are tokenized by the tokenizer itself, without leading space or special tokens. The
    longest token that is a prefix of the bytes is used instead if they are not UTF-8 (partial characters), if the
    tokenizer does not spell them (a normalizer, an unknown character), and for tables without a tokenizer. The bytes
    that follow in the response are not known here; a tokenizer that would merge across the end can use a different
    first token there.

    Args:
        tokens: the table of the tokenizer.
        texts: byte strings, none of them empty.
    """
    out = np.full(len(texts), NOT_MAPPED, dtype=np.int32)
    decoded: list[tuple[int, str]] = []
    if tokens.bare is not None:
        decoded = [(place, text) for place, data in enumerate(texts) if (text := _decode(data)) is not None]
    for (place, _), index in zip(decoded, _encode(tokens.bare, [text for _, text in decoded]), strict=True):
        spelt = tokens[index] if 0 <= index < tokens.vocab_size else None
        if spelt and texts[place].startswith(spelt):
            out[place] = index
    longest = int(tokens.lengths.max(initial=0))
    for place in np.flatnonzero(out == NOT_MAPPED).tolist():
        out[place] = longest_match(tokens.id_of, texts[place], longest)
    return out


def _encode(bare: tokenizers.Tokenizer | None, texts: list[str]) -> list[int]:
    """Returns the first id of each text's tokenization, -1 where it is empty."""
    if bare is None:
        return []
    encodings = bare.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids[0] if encoding.ids else NOT_MAPPED for encoding in encodings]


def _decode(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def longest_match(id_of: dict[bytes, int], data: bytes, longest: int) -> int:
    """Returns the longest token that is a prefix of the bytes, or -1."""
    for length in range(min(len(data), longest), 0, -1):
        index = id_of.get(data[:length])
        if index is not None:
            return index
    return NOT_MAPPED
