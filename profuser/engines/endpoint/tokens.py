"""Maps the tokens that a server names to the ids of a tokenizer, and answers with their log-probabilities to responses.

Legend: T response tokens, K top-k.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.engines.base import Response
from profuser.signals.codec import TopK

ID_PREFIX = "token_id:"
"""Prefix with which vLLM names tokens by their ids (`return_tokens_as_token_ids`)."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LEAST_LOGPROB = -9999.0
"""Log-probability that servers write for a mass of 0, which JSON cannot express."""


class ServedTokens:
    """The tokens of a served model.

    Args:
        tokenizer: its tokenizer.
        tokens: the bytes of its tokens.
        end_ids: tokens that end a turn, the main one first.
    """

    def __init__(self, tokenizer: Any, tokens: TokenBytes, end_ids: Sequence[int]):
        self.tokenizer, self.tokens, self.end_ids = tokenizer, tokens, end_ids
        self.named = {added.content: index for index, added in tokenizer.added_tokens_decoder.items()}

    def id_of(self, name: str, spelt: Sequence[int] | None) -> int | None:
        """Returns a token's id by its name and its bytes, if the server gives them; None if the tokenizer has no such token."""
        if name.startswith(ID_PREFIX):
            index = int(name.removeprefix(ID_PREFIX))
            return index if index < self.tokens.vocab_size else None
        found = self.tokens.id_of.get(name.encode(errors="replace") if spelt is None else bytes(spelt))
        return self.named.get(name) if found is None else found

    def read(self, text: str, reason: str, entries: Sequence[Mapping[str, Any]], top_k: int) -> Response | None:
        """Converts an answer with the log-probabilities of its tokens, in OpenAI's form (`choice.logprobs.content`).

        Args:
            text: the answer's text, without thinking that the server separates.
            reason: `stop` or `length`.
            entries: its tokens.
            top_k: K.

        Returns:
            The response; None if its tokens are not those of the tokenizer, or do not spell the text.
        """
        found = [self.id_of(entry["token"], entry.get("bytes")) for entry in entries]
        ids = [index for index in found if index is not None]
        if not ids or len(ids) < len(found) or not self.spells(ids, text):
            return None
        own = [logprob(entry) for entry in entries]
        tops = [
            ((self.id_of(one["token"], one.get("bytes")), logprob(one)) for one in entry.get("top_logprobs") or ())
            for entry in entries
        ]
        return self._ended(response(ids, own, tops, top_k, reason))

    def spells(self, ids: Sequence[int], text: str) -> bool:
        """Returns whether tokens spell a text, possibly with more around it; characters cut in two do not count."""
        spelt = self.tokens.spell(np.array(ids, dtype=np.int64)).decode(errors="replace")
        return text.replace(REPLACEMENT, "").strip() in spelt.replace(REPLACEMENT, "")

    def without_distributions(self, text: str, reason: str, top_k: int) -> Response:
        """Returns an answer of which only the text is known."""
        assert self.tokens.bare is not None
        ids = self.tokens.bare.encode(text, add_special_tokens=False).ids
        return self._ended(unscored(ids, top_k, reason))

    def _ended(self, found: Response) -> Response:
        """Adds the end of a turn, which many servers do not list, to a response that has ended."""
        if found.finish_reason != "stop" or (len(found.ids) and self.tokens.roles[found.ids[-1]] == Role.END):
            return found
        end = unscored(self.end_ids[:1], found.topk.top_k, "stop")
        topk = TopK(*(np.concatenate([getattr(p.topk, name) for p in (found, end)]) for name in ("ids", "logprobs")))
        ids, own = (np.concatenate([getattr(part, name) for part in (found, end)]) for name in ("ids", "logprobs"))
        return Response(ids, own, topk, "stop")


def response(
    ids: Sequence[int],
    own: Sequence[float],
    tops: Sequence[Iterable[tuple[int | None, float]]],
    top_k: int,
    reason: str,
) -> Response:
    """Builds a response from each token's log-probability and its candidates, in any order; those without an id are left out."""
    shape = (len(ids), top_k)
    top_ids, logprobs = np.zeros(shape, dtype=np.int32), np.full(shape, -np.inf, dtype=np.float32)
    for place, candidates in enumerate(tops):
        best: dict[int, float] = {}
        for index, value in candidates:
            if index is not None:
                best[index] = max(value, best.get(index, -np.inf))
        ranked = sorted(best.items(), key=lambda pair: -pair[1])[:top_k]
        for rank, (index, value) in enumerate(ranked):
            top_ids[place, rank], logprobs[place, rank] = index, value
    topk = TopK(top_ids, logprobs)
    return Response(np.array(ids, dtype=np.int64), np.array(own, dtype=np.float32), topk, reason)


def unscored(ids: Sequence[int], top_k: int, reason: str) -> Response:
    """Returns a response without distributions: all log-probabilities are -inf, so that alignment leaves its positions to CE."""
    return response(ids, [-np.inf] * len(ids), [()] * len(ids), top_k, reason)


def logprob(entry: Mapping[str, Any]) -> float:
    """Returns the log-probability of a token as a server writes it."""
    value = entry.get("logprob")
    return -np.inf if value is None or value <= LEAST_LOGPROB else min(float(value), 0.0)
