"""Determines how a tokenizer's pieces spell bytes, from the structure of its `tokenizer.json`, not from class names.

Three families can be expressed in bytes: byte-level (each character of a piece stands for one byte), SentencePiece-like
(one character stands for a space, and with byte fallback `<0xNN>` for a byte), and plain (a piece is its own UTF-8).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from profuser.errors import AlignmentError

SEQUENCE_KEYS = ("normalizers", "pretokenizers", "decoders")
MODELS = {"BPE", "Unigram", "WordLevel"}
NORMALIZERS = {"NFC", "Prepend", "Replace", "Strip", "ByteLevel"}
"""Normalizers that leave ordinary text unchanged. A row that they do change spells different bytes and is refused."""
PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts", "FixedLength"}
BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


@dataclass(frozen=True)
class Family:
    """Rules by which the pieces of a tokenizer spell bytes."""

    byte_level: bool
    space: str | None
    """Character that stands for a space in a SentencePiece-like tokenizer."""
    byte_fallback: bool
    """Whether `<0xNN>` stands for one byte."""

    def piece_bytes(self, piece: str) -> bytes:
        """Returns the bytes of a piece of the model. A byte-level piece with a foreign character is its own UTF-8."""
        if self.byte_level:
            table = byte_level_alphabet()
            known = all(character in table for character in piece)
            return bytes(table[character] for character in piece) if known else piece.encode()
        match = BYTE_PIECE.match(piece) if self.byte_fallback else None
        return bytes([int(match[1], 16)]) if match else self.text_bytes(piece)

    def text_bytes(self, text: str) -> bytes:
        """Returns the bytes of an added token, which is written as text in every family."""
        return (text.replace(self.space, " ") if self.space else text).encode()

    def is_byte_piece(self, piece: str) -> bool:
        """Returns whether a piece is a byte-fallback piece, `<0xNN>`."""
        return self.byte_fallback and BYTE_PIECE.match(piece) is not None


def recognise(spec: Mapping[str, Any]) -> Family:
    """Returns the family of a tokenizer.

    Args:
        spec: the parsed `tokenizer.json`.

    Raises:
        AlignmentError: the tokenizer changes or loses text (lower-casing, NFKC, WordPiece, splitting on spaces that it
            drops).
    """
    _refuse_lossy(spec)
    parts = [
        *components(spec.get("normalizer")),
        *components(spec.get("pre_tokenizer")),
        *components(spec.get("decoder")),
    ]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return Family(byte_level=True, space=None, byte_fallback=False)
    spaces = [space for part in parts if (space := _space_character(part))]
    fallback = bool(spec["model"].get("byte_fallback")) or "ByteFallback" in kinds
    return Family(byte_level=False, space=spaces[0] if spaces else None, byte_fallback=fallback)


def bare(spec: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Returns the tokenizer for text from the middle of a response.

    It adds no leading space, and has no special tokens and no added tokens with ids beyond the logits.
    """
    out = dict(spec) | {"post_processor": None, "truncation": None, "padding": None}
    out["added_tokens"] = [
        token for token in spec.get("added_tokens", []) if not token["special"] and token["id"] < vocab_size
    ]
    normalizers = [part for part in components(spec.get("normalizer")) if part["type"] != "Prepend"]
    out["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    pre_tokenizers = [_without_prefix(part) for part in components(spec.get("pre_tokenizer"))]
    out["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None
    return out


def components(node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yields the parts of a normalizer, pre-tokenizer or decoder, with nested sequences flattened."""
    if not node:
        return
    if node["type"] == "Sequence":
        for part in next(node[key] for key in SEQUENCE_KEYS if key in node):
            yield from components(part)
    else:
        yield node


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Returns the byte of each character in a byte-level piece (GPT-2): printable Latin-1 is itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(rest)}


def _refuse_lossy(spec: Mapping[str, Any]) -> None:
    """Raises AlignmentError, naming the component, if pieces cannot be read as the bytes of the text."""
    model = spec["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind not in MODELS:
        raise AlignmentError(
            f"a {kind} tokenizer cannot be expressed in bytes; allowed models: {', '.join(sorted(MODELS))}"
        )
    for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise AlignmentError(
                f"the tokenizer marks word parts ({setting} {model[setting]!r}): its pieces do not show where spaces are"
            )
    for part in components(spec.get("normalizer")):
        if part["type"] not in NORMALIZERS:
            raise AlignmentError(
                f"the normalizer {part['type']} changes text, so tokens do not spell the bytes of a response"
            )
    for part in components(spec.get("pre_tokenizer")):
        if part["type"] not in PRE_TOKENIZERS or part.get("behavior") == "Removed":
            raise AlignmentError(
                f"the pre-tokenizer {part['type']} drops characters, so tokens do not spell the bytes of a response"
            )


def _space_character(part: Mapping[str, Any]) -> str | None:
    """Returns the character that a Metaspace, or a Replace of a space in either direction, uses for a space."""
    if part["type"] == "Metaspace":
        return part["replacement"]
    if part["type"] == "Replace":
        pair = (part["pattern"].get("String"), part["content"])
        if " " in pair and pair[0] != pair[1]:
            other = pair[1] if pair[0] == " " else pair[0]
            return other if other and len(other) == 1 else None
    return None


def _without_prefix(part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pre-tokenizer without an added space before the text."""
    if part["type"] == "Metaspace":
        return dict(part) | {"prepend_scheme": "never"}
    return dict(part) | {"add_prefix_space": False} if part["type"] == "ByteLevel" else dict(part)
