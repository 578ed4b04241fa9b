"""Shows how two tokenizers split one text and how a distribution is transported between them, as rows for tables and plots.

Legend: T tokens of a text (T1 = T + 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8

from profuser.alignment.first_token import NOT_MAPPED
from profuser.alignment.matching import Matches, coverage, match, switch_off
from profuser.alignment.spans import Spans, boundaries, byte_spans
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.alignment.transport import ALL_RULES, SourceSignals, Transported
from profuser.alignment.vocab_projection import VocabProjection
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule

SPACE_SIGN = "\u2423"
"""Visible sign for a space."""
END_WORD = "end"
"""Label of a token that ends a turn."""


@dataclass(frozen=True, eq=False)
class NamedTokenizer:
    """A tokenizer with its name and byte table."""

    name: str
    tokenizer: Any
    tokens: TokenBytes

    @classmethod
    def of(cls, name: str, tokenizer: Any) -> "NamedTokenizer":
        """Wraps a Hugging Face fast tokenizer; the vocabulary size is its number of tokens."""
        return cls(name, tokenizer, TokenBytes.from_tokenizer(tokenizer, len(tokenizer)))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a response, with no token before it and the end of turn after it."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokens.end_ids[0]]

    def cut(self, text: str) -> "Cut":
        """Tokenizes a response."""
        return Cut.of(self.name, self.tokens, self.encode(text), text.encode())


@dataclass(frozen=True, eq=False)
class Cut:
    """A text as split by one tokenizer: token t is bytes `[bounds[t], bounds[t + 1])`."""

    name: str
    tokens: TokenBytes
    ids: Int[np.ndarray, "T"]
    bounds: Int[np.ndarray, "T1"]
    """Byte offsets; the first is -1 if the tokens spell a space before the text. An end of turn has no bytes."""
    text: bytes

    @classmethod
    def of(cls, name: str, tokens: TokenBytes, ids: Integer[np.ndarray, "T"] | Sequence[int], text: bytes) -> "Cut":
        """Locates given tokens in a text.

        Raises:
            AlignmentError: the tokens do not spell the text.
        """
        return cls(name, tokens, np.asarray(ids, dtype=np.int64), boundaries(tokens, ids, text), text)

    @property
    def labels(self) -> list[str]:
        """Label of every token."""
        return [token_label(self.tokens, index) for index in self.ids.tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row per token for a table: id, text, bytes, and byte offsets."""
        return [
            {"token": label, "id": index, "bytes": hex_bytes(self.tokens[index] or b""), "from": start, "to": end}
            for label, index, start, end in zip(
                self.labels, self.ids.tolist(), self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True
            )
        ]


def token_label(tokens: TokenBytes, index: int) -> str:
    """Returns a token's label: its text with visible spaces, its bytes if they are not UTF-8, its role if it has no bytes."""
    data = tokens[index]
    if data is None:
        role = Role(int(tokens.roles[index]))
        return END_WORD if role == Role.END else f"<{role.name.lower()}>"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return hex_bytes(data)
    return "".join(SPACE_SIGN if c == " " else c if c.isprintable() else ascii(c)[1:-1] for c in text)


def hex_bytes(data: bytes) -> str:
    """Formats bytes as pairs of hex digits: `F0 9F`."""
    return data.hex(" ").upper()


@dataclass(frozen=True, eq=False)
class Aligned:
    """Two tokenizations of one text, and for each target position its rule and source token."""

    source: Cut
    target: Cut
    matches: Matches
    rules: UInt8[np.ndarray, "T"]
    """`Rule` per target position; NONE where the rule it needs is off."""

    @classmethod
    def of(cls, source: Cut, target: Cut, rules: AlignmentRules = ALL_RULES) -> "Aligned":
        """Aligns two tokenizations of the same text."""
        found = _match(source.tokens, [source.ids], target.tokens, [target.ids], [source.text])
        return cls(source, target, found, switch_off(found, rules))

    def rule(self, position: int) -> Rule:
        """Returns the rule of a target position."""
        return Rule(int(self.rules[position]))

    def source_tokens_of(self, position: int) -> range:
        """Returns a target position's source tokens: the one whose distribution is used, and under CHAIN the following ones."""
        first, rule = int(self.matches.source[position]), self.rule(position)
        if rule == Rule.NONE:
            return range(0)
        last = int(self.matches.stop[position]) + int(self.matches.cut[position]) if rule == Rule.CHAIN else first + 1
        return range(first, last)

    def consumed(self, position: int) -> bytes:
        """Returns the bytes of the source token before a target position."""
        data = self.source.tokens[int(self.source.ids[self.matches.source[position]])] or b""
        return data[: int(self.matches.consumed[position])]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row per target position for a table."""
        labels = self.source.labels
        return [
            {
                "target token": label,
                "rule": self.rule(position).name.lower(),
                "source tokens": " + ".join(labels[index] for index in self.source_tokens_of(position)),
                "consumed": hex_bytes(self.consumed(position)) if self.rule(position) else "",
            }
            for position, label in enumerate(self.target.labels)
        ]


@dataclass(frozen=True)
class MassShare:
    """Destination of one candidate of the source at one target position."""

    candidate: str
    mass: float
    """Probability under the source, 0 to 1."""
    target: int
    """Target token that receives the mass; -1 for the tail."""
    fits: bool
    """Whether it begins with the bytes already consumed and the target would split it there; a candidate that does not fit is left
    out, and the others are scaled up."""
    continued: bool
    """Whether it is the realised token under CHAIN: its mass is multiplied with what follows, and the rest goes to the tail."""


def mass_shares(
    aligned: Aligned, signals: SourceSignals, projection: VocabProjection, position: int
) -> list[MassShare]:
    """Returns the destination of each source candidate at a target position; empty under NONE. `transport_rows` has the masses."""
    if aligned.rule(position) == Rule.NONE:
        return []
    place = int(aligned.matches.source[position])
    consumed, space = aligned.consumed(position), int(aligned.matches.space[position])
    listed, actual = signals.topk.ids[place], aligned.source.ids[place]
    fitting = projection.splits.fitting(listed[None].astype(np.int64), actual[None], np.array([len(consumed)]))[0]
    out = []
    for index, fits, logprob in zip(
        listed.tolist(), fitting.tolist(), signals.topk.logprobs[place].tolist(), strict=True
    ):
        continued = aligned.rule(position) == Rule.CHAIN and index == int(aligned.source.ids[place])
        if continued:
            target = int(aligned.target.ids[position])
        else:
            target = _destination(projection, index, len(consumed), space) if fits else NOT_MAPPED
        label = token_label(aligned.source.tokens, index)
        out.append(MassShare(label, float(np.exp(logprob)), target, fits, continued))
    return out


def _destination(projection: VocabProjection, index: int, num_consumed: int, space: int) -> int:
    """Returns the target token of the rest of a source token."""
    ids = np.array([index])
    if space:
        return int((projection.without_space if space < 0 else projection.with_space)(ids)[0])
    return int(projection.rest(ids, np.array([num_consumed]))[0])


@dataclass(frozen=True, eq=False)
class Masses:
    """Transported mass at every target position; the three parts sum to 1 where there is a rule."""

    realised: Float[np.ndarray, "T"]
    """Mass on the token of the text."""
    others: Float[np.ndarray, "T"]
    """Mass on the other listed tokens."""
    tail: Float[np.ndarray, "T"]
    """Mass on everything else; 1 where nothing was transported."""

    @classmethod
    def of(cls, carried: Transported, target_ids: Int[np.ndarray, "T"]) -> "Masses":
        """Sums up transported distributions."""
        mass = np.exp(carried.topk.logprobs.astype(np.float64))
        realised = (mass * (carried.topk.ids == target_ids[:, None])).sum(axis=1)
        return cls(realised, mass.sum(axis=1) - realised, carried.topk.tail_mass().astype(np.float64))

    def rows(self, target: Cut) -> list[dict[str, Any]]:
        """Returns a row per target position for a table."""
        columns = zip(target.labels, *(part.tolist() for part in (self.realised, self.others, self.tail)), strict=True)
        return [
            {"target token": label, "on this token": own, "on others": others, "tail": tail, "sum": own + others + tail}
            for label, own, others, tail in columns
        ]


def text_coverage(source: NamedTokenizer, target: NamedTokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Counts the target tokens of texts by alignment rule with `matching.coverage`; a misspelt text counts as `none`."""
    ids = [[side.encode(text) for text in texts] for side in (source, target)]
    found = _match(source.tokens, ids[0], target.tokens, ids[1], [text.encode() for text in texts])
    return coverage(found.rules)


def coverage_rows(pairs: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Returns a row per pair for a table: its tokens, and the share of each rule in percent."""
    return [
        {"pair": name, "tokens": sum(rules.values())}
        | {f"{rule}, %": 100 * number / max(1, sum(rules.values())) for rule, number in rules.items()}
        for name, rules in pairs.items()
    ]


def _match(
    source: TokenBytes, source_ids: Sequence[Any], target: TokenBytes, target_ids: Sequence[Any], texts: list[bytes]
) -> Matches:
    sides: list[tuple[TokenBytes, Ragged, Spans]] = []
    for tokens, rows in ((source, source_ids), (target, target_ids)):
        ids = Ragged.from_rows(rows, dtype=np.int64)
        sides.append((tokens, ids, byte_spans(tokens, ids, texts)))
    return match(*sides[0], *sides[1])
