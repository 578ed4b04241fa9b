"""Reads a model's answer from its tokens: the text behind any thinking, or why there is none.

Legend: T response tokens.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.corpus.rendering import chat_texts
from profuser.corpus.thinking import BLANK, FAMILIES, MARKS, answer_start
from profuser.engines.answer_vocabularies import answer_tokens
from profuser.engines.base import Response
from profuser.errors import UserError
from profuser.recipe.template import TemplateConfig

MAX_CHARACTER_BYTES = 4
"""Maximum number of bytes of a character in UTF-8."""
HEAD = 16
"""Tokens among which thinking begins that the prompt has not opened."""
UNREADABLE = {
    "blank": "blank",
    "special_token": "with a special token that ends no turn",
    "not_text": "not text in UTF-8",
    "thinking": "cut inside their thinking",
}
"""Reasons why an answer has no text, with the words of messages."""


@dataclass(frozen=True)
class Answer:
    """A model's answer."""

    response: Response
    """The tokens of `text` and its end of turn; those of the whole answer if it has no text."""
    text: str | None
    """The answer that is judged and learnt; None if it is no answer."""
    unreadable: str | None = None
    """Key of `UNREADABLE` if `text` is None."""
    thinking_tokens: int = 0
    """Tokens of thinking that were left out."""


class AnswerReader:
    """Reads the answers of one model.

    Args:
        tokenizer: its tokenizer.
        tokens: the bytes of its tokens.
        template: the template of its prompts.

    Raises:
        UserError: the recipe keeps the thinking of a model that writes special tokens around it.
    """

    def __init__(self, tokenizer: Any, tokens: TokenBytes, template: TemplateConfig):
        texts = chat_texts(tokenizer, template)
        self.tokens, self.family, self.keeps = tokens, texts.family, template.thinking == "keep"
        self.thinks = texts.asking != texts.answering
        """Whether the prompt that the model answers differs from that of an answer without thinking."""
        self.stops = [stop.encode() for stop in template.stop]
        self.names = {i: t.content for i, t in tokenizer.added_tokens_decoder.items()}
        marks = [f.open + f.close for f in FAMILIES if f.open in texts.asking or f.close in texts.asking]
        specials = (name for i, name in self.names.items() if tokens.roles[i] != Role.TEXT)
        special = next((name for name in specials if any(name in mark for mark in marks)), None)
        if self.keeps and special:
            raise UserError(
                f"template.thinking: keep: {tokenizer.name_or_path} marks its thinking with the special token {special}, "
                "which is no text to learn; set template.thinking: strip"
            )

    def read(self, response: Response) -> Answer:
        """Returns the text of an answer, without the end of its turn, and without its thinking unless the recipe keeps it."""
        if response.vocabulary is None:
            return self._read(response)
        own = copy(self)
        own.tokens, own.names = answer_tokens(response.vocabulary), {}
        return own._read(response)

    def _read(self, response: Response) -> Answer:
        whole = self._whole(self._until_stop(response))
        ended = bool(len(whole.ids)) and self.tokens.roles[whole.ids[-1]] == Role.END
        ids = whole.ids[: len(whole.ids) - ended]
        start = self._answer_start(ids)
        if start is None:
            return Answer(whole, None, "thinking", len(ids))
        text, why = self._text(ids[start:])
        if text is None:
            return Answer(whole, None, why, start)
        if self.keeps and start:
            text, why = self._text(ids)
            return Answer(whole, text, why, start)
        kept = replace(whole, ids=whole.ids[start:], logprobs=whole.logprobs[start:], topk=whole.topk[start:])
        return Answer(kept, text, None, start)

    def _until_stop(self, response: Response) -> Response:
        """Returns an answer up to the first of the recipe's texts that end it.

        A token across that place stays if only a blank of it lies behind: many tokenizers have one for a full stop and a new line.
        """
        pieces = [self._piece(token) for token in response.ids.tolist()] if self.stops else []
        spelt = b"".join(pieces)
        places = [place for stop in self.stops if (place := spelt.find(stop)) >= 0]
        if not places:
            return response
        ends, place = np.cumsum([len(piece) for piece in pieces]), min(places)
        kept = int(np.searchsorted(ends, place, side="right"))
        begun = ends[kept] - len(pieces[kept]) < place
        if begun and not spelt[place : ends[kept]].strip():
            kept += 1
        ids, logprobs, topk = response.ids[:kept], response.logprobs[:kept], response.topk[:kept]
        return replace(response, ids=ids, logprobs=logprobs, topk=topk, finish_reason="stop")

    def _answer_start(self, ids: Int[np.ndarray, "T"]) -> int | None:
        """Returns the index of the answer's first token; None if the thinking before it does not end where a token does."""
        head = b"".join(self._piece(token) for token in ids[:HEAD].tolist()).decode(errors="replace")
        if not self.family and not head.lstrip(BLANK).startswith(MARKS):
            return 0
        pieces = [self._piece(token) for token in ids.tolist()]
        # One character per byte: places in the text are places among the bytes.
        spelt = b"".join(pieces).decode("latin-1")
        place = answer_start(spelt, self.family)
        if not place:
            return place
        rest = spelt[place:]
        last = place + len(rest) - len(rest.lstrip(BLANK))
        starts = np.cumsum([0, *map(len, pieces)])
        # The latest token that begins behind the thinking, and not behind the answer's first character.
        found = int(np.searchsorted(starts, last, side="right")) - 1
        return found if starts[found] >= place else None

    def _piece(self, token: int) -> bytes:
        return self.tokens[token] or self.names.get(token, "").encode()

    def _whole(self, response: Response) -> Response:
        """Returns an answer, without the tokens of its last character if the length limit cut it inside that character."""
        for dropped in range(MAX_CHARACTER_BYTES if response.finish_reason == "length" else 0):
            kept = slice(0, max(0, len(response.ids) - dropped))
            if _decoded(self.tokens.spell(response.ids[kept])) is not None:
                return replace(
                    response, ids=response.ids[kept], logprobs=response.logprobs[kept], topk=response.topk[kept]
                )
        return response

    def _text(self, ids: Int[np.ndarray, "T"]) -> tuple[str | None, str | None]:
        """Returns the text of tokens, or None and why they are none: blank, not UTF-8, or with a special token."""
        if (self.tokens.roles[ids] != Role.TEXT).any():
            return None, "special_token"
        text = _decoded(self.tokens.spell(ids))
        if text is None:
            return None, "not_text"
        return (text.removeprefix(" "), None) if text.strip() else (None, "blank")


def _decoded(spelt: bytes) -> str | None:
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return None
