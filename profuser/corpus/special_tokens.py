"""Text is never a command: what a message says of a special token is read as the characters it is written in.

A chat template and the messages in it become one string, in which a tokenizer cannot tell the template's `<|im_end|>` from
a user's. So commands are marked in a message before it is rendered (`protect`), and a rendered text with marks in it is
tokenised by a twin of the tokenizer that knows the commands by names which no text has (`encode`). Texts without a mark, which
is nearly all, take the tokenizer's own way.

Transformers has an option for the same (`sanitize_control_tokens`): it cuts a text into pieces at each mark, and switches the
tokenizer itself from one reading to the other, under which another thread's texts would change. It is what serving uses.

A command is a special token, or another added token that the chat template itself writes, as DeepSeek's `User`. Added tokens
that models write in their answers, as `<think>`, are text.
"""

import json
import re
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tokenizers

from profuser.errors import EngineError

MARK = f"#{secrets.randbits(80):024d}~"
"""Put into a command's string after its first character. Nobody can know it, and the filters of templates leave it as it is."""

Commands = tuple[str, ...]
"""The strings that are commands to a tokenizer, the longest first."""


def commands(tokenizer: Any, written: str = "") -> Commands:
    """The strings that are commands to a tokenizer.

    Args:
        tokenizer: of Transformers, fast or slow.
        written: what its chat template writes around some messages.
    """
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or (token.content.strip() and token.content in written):
            found.add(token.content)
    return tuple(sorted(filter(None, found), key=len, reverse=True))


def protect(text: str, strings: Commands) -> str:
    """The text with a mark in each command that it spells. `encode` reads it as the characters that were there."""
    return _pattern(strings).sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text) if strings else text


def encode(
    tokenizer: Any, texts: Sequence[str], strings: Commands, add_special_tokens: bool = False
) -> list[list[int]]:
    """Tokenises rendered texts: unmarked commands as the tokens they are, marked ones as text.

    Args:
        tokenizer: of Transformers, fast or slow.
        texts: rendered, or protected.
        strings: the tokenizer's commands.
        add_special_tokens: whether the tokenizer adds its own, as to a text that no template has rendered.

    Raises:
        EngineError: the tokenizer cannot be read this way.
    """
    if not texts:
        return []
    plain = [text for text in texts if MARK not in text]
    # All in one go: outside Python's lock, where the tokenizer is a fast one.
    options = {"add_special_tokens": add_special_tokens, "return_attention_mask": False}
    read = iter(tokenizer(plain, **options)["input_ids"] if plain else [])
    return [
        _encode_marked(tokenizer, text, strings, add_special_tokens) if MARK in text else next(read) for text in texts
    ]


@lru_cache(maxsize=64)
def _pattern(strings: Commands) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, strings))})")


def _encode_marked(tokenizer: Any, text: str, strings: Commands, add_special_tokens: bool) -> list[int]:
    if not getattr(tokenizer, "is_fast", False):
        ids = _encode_in_pieces(tokenizer, text, strings)
        return tokenizer.build_inputs_with_special_tokens(ids) if add_special_tokens else ids
    twin, names = _twin(tokenizer, strings)
    renamed = _pattern(strings).sub(lambda found: names[found[0]], text)
    return twin.encode(renamed.replace(MARK, ""), add_special_tokens=add_special_tokens).ids


def _encode_in_pieces(tokenizer: Any, text: str, strings: Commands) -> list[int]:
    """As a tokenizer written in Python reads a text: what is between its special tokens, each piece by itself."""
    ids: list[int] = []
    for piece in _pattern(strings).split(text):
        if piece in strings:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            ids += tokenizer.encode(piece.replace(MARK, ""), add_special_tokens=False, split_special_tokens=True)
    return ids


@lru_cache(maxsize=8)
def _twin(tokenizer: Any, strings: Commands) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The same tokenizer with other names for its commands, of the same ids; and these names."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    secret = secrets.token_hex(8)
    names = {text: f"\ufdd0{secret}.{number}\ufdd1" for number, text in enumerate(strings)}
    spec |= {"truncation": None, "padding": None}
    for token in spec["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False, "special": True}
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    twin = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for token in spec["added_tokens"]:
        if twin.token_to_id(token["content"]) != token["id"]:
            raise EngineError(
                f"{tokenizer.name_or_path}: read again, its tokenizer gives token {token['id']} another id"
            )
    return twin, names
