"""Tokenizes special tokens that a message spells out as plain text, never as control tokens.

A chat template and its messages are rendered into one string, in which a tokenizer cannot distinguish the template's `<|im_end|>`
from a user's. So control strings ("commands") are marked in a message before it is rendered (`protect`), and a rendered text with
marks is tokenized by a copy of the tokenizer in which the commands have names that occur in no text (`encode`). Texts without
marks, nearly all, are tokenized directly.

Transformers has an option for the same purpose (`sanitize_control_tokens`): it splits a text at each mark, and switches the
tokenizer itself between the two modes, which would change the texts of other threads. Serving uses it.

A command is a special token, or another added token that the chat template itself writes, such as DeepSeek's `User`. Added tokens
that models write in their answers, such as `<think>`, are text.
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
"""Mark inserted after the first character of a command. It is unguessable, and template filters leave it unchanged."""

Commands = tuple[str, ...]
"""Strings that a tokenizer treats as commands, the longest first."""


def commands(tokenizer: Any, written: str = "") -> Commands:
    """Returns the strings that a tokenizer treats as commands.

    Args:
        tokenizer: a Transformers tokenizer, fast or slow.
        written: a conversation rendered with its chat template.
    """
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or (token.content.strip() and token.content in written):
            found.add(token.content)
    return tuple(sorted(filter(None, found), key=len, reverse=True))


def protect(text: str, strings: Commands) -> str:
    """Marks each command that a text spells out. `encode` tokenizes marked commands as their original characters."""
    return _pattern(strings).sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text) if strings else text


def encode(
    tokenizer: Any, texts: Sequence[str], strings: Commands, add_special_tokens: bool = False
) -> list[list[int]]:
    """Tokenizes rendered texts: unmarked commands as control tokens, marked ones as text.

    Args:
        tokenizer: a Transformers tokenizer, fast or slow.
        texts: rendered or protected texts.
        strings: the tokenizer's commands.
        add_special_tokens: whether the tokenizer adds its special tokens, as for a text not rendered by a template.

    Raises:
        EngineError: the tokenizer does not support the renaming.
    """
    if not texts:
        return []
    plain = [text for text in texts if MARK not in text]
    # One call for all: a fast tokenizer releases the GIL.
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
    """Tokenizes like a slow tokenizer: splits at special tokens, and encodes each piece separately."""
    ids: list[int] = []
    for piece in _pattern(strings).split(text):
        if piece in strings:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            ids += tokenizer.encode(piece.replace(MARK, ""), add_special_tokens=False, split_special_tokens=True)
    return ids


@lru_cache(maxsize=8)
def _twin(tokenizer: Any, strings: Commands) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Returns a copy of the tokenizer with its commands renamed (same ids), and the new names."""
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
                f"{tokenizer.name_or_path}: a reloaded copy of its tokenizer gives token {token['id']} another id"
            )
    return twin, names
