"""Stores the byte string of every token of a tokenizer in one flat table.

Legend: V vocabulary (width of the logits), A bytes of all tokens together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, UInt8

from profuser.alignment.prefix_tree import prefix_nodes
from profuser.alignment.tokenizer_family import bare, recognise
from profuser.errors import AlignmentError
from profuser.signals.ragged import offsets_of


class Role(IntEnum):
    """Purpose of a token without bytes. TEXT has bytes; UNUSED is an id of the logits without a token."""

    TEXT = 0
    BOS = 1
    END = 2
    """End of a turn: the end-of-sequence token, or one that the caller names."""
    PAD = 3
    UNK = 4
    OTHER = 5
    UNUSED = 6


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """Byte strings of V ids: token i is `blob[starts[i]:starts[i] + lengths[i]]`; specials have a role but no bytes."""

    blob: UInt8[np.ndarray, "A"]
    starts: Int[np.ndarray, "V"]
    lengths: Int[np.ndarray, "V"]
    roles: UInt8[np.ndarray, "V"]
    byte_pieces: Bool[np.ndarray, "V"]
    """Byte-fallback tokens (`<0xNN>`), which a tokenizer uses only where no other token fits."""
    end_ids: tuple[int, ...]
    """Tokens that end a turn; other models' end tokens are mapped to the first."""
    bare: tokenizers.Tokenizer | None = None
    """The tokenizer itself, without leading space and special tokens; None for a table built by hand."""
    num_beyond: int = 0
    """Tokens of the tokenizer whose ids lie beyond the logits; they are left out."""

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, vocab_size: int, end_ids: Sequence[int] = ()) -> "TokenBytes":
        """Reads the table from a Hugging Face fast tokenizer.

        Added tokens that are not special have their text's UTF-8 bytes. Special tokens have no bytes. Tokens with ids beyond the
        logits are left out: the model can neither read nor write them.

        Args:
            tokenizer: a `transformers` fast tokenizer, or a `tokenizers.Tokenizer` (which knows no roles but unk).
            vocab_size: width of the model's logits; ids from the tokenizer's length on are unused.
            end_ids: tokens that end a turn, in addition to `eos_token_id`; the first one is the main one.

        Raises:
            AlignmentError: the tokenizer cannot be expressed in bytes, or the token that ends a turn is beyond the logits.
        """
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise AlignmentError(f"{type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer")
        spec = json.loads(backend.to_str())
        family = recognise(spec)
        table: list[bytes | None] = [None] * vocab_size
        byte_pieces = np.zeros(vocab_size, dtype=bool)
        added = {token["id"]: token for token in spec["added_tokens"]}
        num_beyond = 0
        for piece, index in backend.get_vocab(with_added_tokens=True).items():
            if index >= vocab_size:
                num_beyond += 1
                continue
            if index in added:
                table[index] = None if added[index]["special"] else family.text_bytes(piece)
            else:
                table[index] = family.piece_bytes(piece)
                byte_pieces[index] = family.is_byte_piece(piece)
        ends, roles = _roles(tokenizer, spec, end_ids)
        for index, token in added.items():
            if token["special"]:
                roles.setdefault(index, Role.OTHER)
        roles = {index: role for index, role in roles.items() if index < vocab_size}
        if ends and ends[0] >= vocab_size:
            raise AlignmentError(
                f"the token that ends a turn has id {ends[0]}, outside the vocabulary: the logits have only {vocab_size} entries"
            )
        ends = tuple(index for index in ends if index < vocab_size)
        stripped = tokenizers.Tokenizer.from_str(json.dumps(bare(spec, vocab_size)))
        found = cls.from_table(table, roles, ends, byte_pieces, stripped)
        return replace(found, num_beyond=num_beyond)

    @classmethod
    def from_table(
        cls,
        table: Sequence[bytes | None],
        roles: Mapping[int, Role] | None = None,
        end_ids: Sequence[int] = (),
        byte_pieces: Bool[np.ndarray, "V"] | None = None,
        bare: tokenizers.Tokenizer | None = None,
    ) -> "TokenBytes":
        """Builds the table from given byte strings. Tokens with a role other than TEXT lose their bytes.

        Raises:
            AlignmentError: an end id is outside the vocabulary.
        """
        given = dict(roles or {}) | dict.fromkeys(end_ids, Role.END)
        outside = [index for index in given if not 0 <= index < len(table)]
        if outside:
            raise AlignmentError(f"special token id {outside[0]} is outside the vocabulary of {len(table)}")
        rows = [b"" if data is None or index in given else data for index, data in enumerate(table)]
        role_of = np.array([Role.TEXT if data else Role.UNUSED for data in rows], dtype=np.uint8)
        role_of[list(given)] = [int(role) for role in given.values()]
        offsets = offsets_of(np.array([len(data) for data in rows], dtype=np.int64))
        return cls(
            blob=np.frombuffer(b"".join(rows), dtype=np.uint8),
            starts=offsets[:-1],
            lengths=np.diff(offsets),
            roles=role_of,
            byte_pieces=np.zeros(len(table), dtype=bool) if byte_pieces is None else byte_pieces,
            end_ids=tuple(end_ids),
            bare=bare,
        )

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, V."""
        return len(self.lengths)

    def __getitem__(self, token_id: int) -> bytes | None:
        """Returns the bytes of one token, or None if it has none."""
        start, length = int(self.starts[token_id]), int(self.lengths[token_id])
        return self.blob[start : start + length].tobytes() if length else None

    def spell(self, token_ids: Int[np.ndarray, "T"]) -> bytes:
        """Returns the concatenated bytes of tokens."""
        lengths = self.lengths[token_ids]
        offsets = offsets_of(lengths)
        shift = np.repeat(self.starts[token_ids] - offsets[:-1], lengths)
        return self.blob[shift + np.arange(offsets[-1])].tobytes()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table, for manifests: equal exactly if ids have equal bytes and roles."""
        state = hashlib.sha256()
        for part in (self.lengths.astype("<i8"), self.blob, self.roles, np.array(self.end_ids, dtype="<i8")):
            state.update(len(part).to_bytes(8, "little") + part.tobytes())
        return state.hexdigest()

    @cached_property
    def id_of(self) -> dict[bytes, int]:
        """Token of each byte string. Among several, an ordinary token is preferred to `<0xNN>`, then the lowest id."""
        order = np.lexsort((np.arange(self.vocab_size), self.byte_pieces))[::-1]
        return {data: index for index in order.tolist() if (data := self[index]) is not None}

    @cached_property
    def prefix_nodes(self) -> Int[np.ndarray, "A"]:
        """Number of the token's prefix that ends at each byte of the table; equal prefixes have equal numbers."""
        return prefix_nodes(self.blob, self.starts, self.lengths)


def _roles(tokenizer: Any, spec: Mapping[str, Any], end_ids: Sequence[int]) -> tuple[tuple[int, ...], dict[int, Role]]:
    """Returns the ids that end a turn, the main one first, and the roles of the other specials that the tokenizer names."""
    specials = {token["id"] for token in spec["added_tokens"] if token["special"]}
    roles = {}
    for name, role in (("pad", Role.PAD), ("bos", Role.BOS), ("unk", Role.UNK)):
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index in specials:
            roles[index] = role
    unk = _unk_id(spec["model"])
    if unk is not None:
        roles[unk] = Role.UNK
    eos = getattr(tokenizer, "eos_token_id", None)
    ends = tuple(dict.fromkeys([*end_ids, eos] if isinstance(eos, int) else end_ids))
    return ends, {index: role for index, role in roles.items() if index not in ends}


def _unk_id(model: Mapping[str, Any]) -> int | None:
    """Returns the id that the model uses for unknown text, if it has one."""
    if model.get("unk_id") is not None:
        return model["unk_id"]
    token = model.get("unk_token")
    return model["vocab"].get(token) if token and isinstance(model["vocab"], dict) else None
