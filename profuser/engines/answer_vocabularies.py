"""Vocabularies of single answers and rows, for a source whose tokenizer is not known: the byte strings of their tokens.

In each, the first byte string is empty and is the end of a turn.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from profuser.alignment.token_bytes import TokenBytes
from profuser.engines.base import Response
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged

END = 0
"""Id of the end of a turn."""
END_BYTES = b""


def answer_tokens(vocabulary: Sequence[bytes]) -> TokenBytes:
    """Returns the table of a vocabulary's tokens."""
    return TokenBytes.from_table(vocabulary, end_ids=(END,))


def join_vocabularies(answers: Sequence[Response]) -> tuple[list[bytes], list[Response]]:
    """Returns the vocabulary of all answers to a row, and the answers with ids in it."""
    vocabulary, ids = _union([answer.vocabulary or () for answer in answers])
    out = []
    for own, answer in zip(ids, answers, strict=True):
        topk = TopK(own[answer.topk.ids], answer.topk.logprobs)
        out.append(replace(answer, ids=own[answer.ids], topk=topk, vocabulary=None))
    return vocabulary, out


def merge_vocabularies(vocabularies: Sequence[Sequence[bytes]]) -> tuple[TokenBytes, Ragged]:
    """Merges the vocabularies of rows.

    Returns:
        The table of all their tokens, and per row the id in it of each id of the row.
    """
    vocabulary, ids = _union(vocabularies)
    return answer_tokens(vocabulary), Ragged.from_rows(ids, dtype=np.int64)


def _union(vocabularies: Sequence[Sequence[bytes]]) -> tuple[list[bytes], list[np.ndarray]]:
    """Returns the byte strings of all vocabularies, and for each vocabulary its byte strings' places among them."""
    places = {END_BYTES: END}
    ids = [[places.setdefault(piece, len(places)) for piece in vocabulary] for vocabulary in vocabularies]
    return list(places), [np.array(own, dtype=np.int64) for own in ids]
