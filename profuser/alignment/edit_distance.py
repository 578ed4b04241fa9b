"""Finds the nearest token by edit distance over bytes: FuseLLM's MinED mapping, kept as a baseline."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from profuser.alignment.token_bytes import TokenBytes

TEXTS_PER_CHUNK = 512
"""Rows of the distance table that are in memory at once: 31 MiB (uint16) against a vocabulary of 32,000."""


def nearest_tokens(tokens: TokenBytes, texts: Sequence[bytes]) -> Int32[np.ndarray, "texts"]:
    """Returns the token with the smallest Levenshtein distance over bytes to each byte string; ties go to the lowest id.

    Args:
        tokens: the table to search; if none of its tokens has bytes, all results are -1.
        texts: byte strings.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    ids = np.flatnonzero(tokens.lengths)
    out = np.full(len(texts), -1, dtype=np.int32)
    if not len(ids):
        return out
    # RapidFuzz compares characters: Latin-1 maps each byte to one character.
    choices = [(tokens[index] or b"").decode("latin-1") for index in ids.tolist()]
    for start in range(0, len(texts), TEXTS_PER_CHUNK):
        queries = [text.decode("latin-1") for text in texts[start : start + TEXTS_PER_CHUNK]]
        distances = cdist(queries, choices, scorer=Levenshtein.distance, dtype=np.uint16)
        out[start : start + len(queries)] = ids[distances.argmin(axis=1)]
    return out
