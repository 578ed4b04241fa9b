"""How one text is cut by two tokenizers, and what becomes of a distribution between them, as rows for tables and pictures.

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
"""Stands for a space, which would not be seen at the end of a token."""
END_WORD = "end"
"""Stands for a token that ends a turn."""


@dataclass(frozen=True, eq=False)
class NamedTokenizer:
    """A tokenizer, what it is called, and its table of bytes."""

    name: str
    tokenizer: Any
    tokens: TokenBytes

    @classmethod
    def of(cls, name: str, tokenizer: Any) -> "NamedTokenizer":
        """A Hugging Face fast tokenizer with as many ids as it has tokens."""
        return cls(name, tokenizer, TokenBytes.from_tokenizer(tokenizer, len(tokenizer)))

    def encode(self, text: str) -> list[int]:
        """The ids of a response: no token before it, the end of the turn after it."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokens.end_ids[0]]

    def cut(self, text: str) -> "Cut":
        """A response in tokens."""
        return Cut.of(self.name, self.tokens, self.encode(text), text.encode())


@dataclass(frozen=True, eq=False)
class Cut:
    """A text as one tokenizer cuts it: token t is bytes `[bounds[t], bounds[t + 1])`."""

    name: str
    tokens: TokenBytes
    ids: Int[np.ndarray, "T"]
    bounds: Int[np.ndarray, "T1"]
    """The first is -1 where the tokens spell a space before the text; an end of turn has no bytes."""
    text: bytes

    @classmethod
    def of(cls, name: str, tokens: TokenBytes, ids: Integer[np.ndarray, "T"] | Sequence[int], text: bytes) -> "Cut":
        """Lays given tokens over a text.

        Raises:
            AlignmentError: the tokens do not spell the text.
        """
        return cls(name, tokens, np.asarray(ids, dtype=np.int64), boundaries(tokens, ids, text), text)

    @property
    def labels(self) -> list[str]:
        """Every token in a word."""
        return [token_label(self.tokens, index) for index in self.ids.tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """A row per token for a table: id, text, bytes, and where it lies."""
        return [
            {"token": label, "id": index, "bytes": hex_bytes(self.tokens[index] or b""), "from": start, "to": end}
            for label, index, start, end in zip(
                self.labels, self.ids.tolist(), self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True
            )
        ]


def token_label(tokens: TokenBytes, index: int) -> str:
    """A token in a word: its text with spaces to be seen, its bytes where they are no text, its role where it has none."""
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
    """Bytes as pairs of hex digits: `F0 9F`."""
    return data.hex(" ").upper()


@dataclass(frozen=True, eq=False)
class Aligned:
    """Two cuts of one text, and for each target position the rule and the source token that speaks for it."""

    source: Cut
    target: Cut
    matches: Matches
    rules: UInt8[np.ndarray, "T"]
    """`Rule` per target position, NONE where a rule that it needs is off."""

    @classmethod
    def of(cls, source: Cut, target: Cut, rules: AlignmentRules = ALL_RULES) -> "Aligned":
        """Aligns two cuts of the same text."""
        found = _match(source.tokens, [source.ids], target.tokens, [target.ids], [source.text])
        return cls(source, target, found, switch_off(found, rules))

    def rule(self, position: int) -> Rule:
        """The rule of a target position."""
        return Rule(int(self.rules[position]))

    def spoken_by(self, position: int) -> range:
        """The source tokens of a target position: the one whose distribution is used, and under CHAIN those that follow it."""
        first, rule = int(self.matches.source[position]), self.rule(position)
        if rule == Rule.NONE:
            return range(0)
        last = int(self.matches.stop[position]) + int(self.matches.cut[position]) if rule == Rule.CHAIN else first + 1
        return range(first, last)

    def consumed(self, position: int) -> bytes:
        """The bytes of the source token that lie before a target position."""
        data = self.source.tokens[int(self.source.ids[self.matches.source[position]])] or b""
        return data[: int(self.matches.consumed[position])]

    def rows(self) -> list[dict[str, Any]]:
        """A row per target position for a table."""
        labels = self.source.labels
        return [
            {
                "target token": label,
                "rule": self.rule(position).name.lower(),
                "source tokens": " + ".join(labels[index] for index in self.spoken_by(position)),
                "consumed": hex_bytes(self.consumed(position)) if self.rule(position) else "",
            }
            for position, label in enumerate(self.target.labels)
        ]


@dataclass(frozen=True)
class MassShare:
    """What became of one candidate of the source at one target position."""

    candidate: str
    mass: float
    """Of the source's distribution, 0 to 1."""
    target: int
    """The target token that it goes to; -1 for the tail."""
    fits: bool
    """Whether it begins with the bytes already consumed and the target would split it there; what does not fit is left out, and
    the others are scaled up."""
    continued: bool
    """Whether it stands there and CHAIN makes its mass a product with what follows; the rest of it goes to the tail."""


def mass_shares(
    aligned: Aligned, signals: SourceSignals, projection: VocabProjection, position: int
) -> list[MassShare]:
    """Where each candidate of the source goes at a target position; `transport_rows` says with how much. Empty under NONE."""
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
    """The target token of what is left of a source token."""
    ids = np.array([index])
    if space:
        return int((projection.without_space if space < 0 else projection.with_space)(ids)[0])
    return int(projection.rest(ids, np.array([num_consumed]))[0])


@dataclass(frozen=True, eq=False)
class Masses:
    """What has arrived at every target position; the three make 1 where there is a rule."""

    realised: Float[np.ndarray, "T"]
    """On the token that stands there."""
    others: Float[np.ndarray, "T"]
    """On the other tokens that are listed."""
    tail: Float[np.ndarray, "T"]
    """On everything else; 1 where nothing has arrived."""

    @classmethod
    def of(cls, carried: Transported, target_ids: Int[np.ndarray, "T"]) -> "Masses":
        """Sums up carried distributions."""
        mass = np.exp(carried.topk.logprobs.astype(np.float64))
        realised = (mass * (carried.topk.ids == target_ids[:, None])).sum(axis=1)
        return cls(realised, mass.sum(axis=1) - realised, carried.topk.tail_mass().astype(np.float64))

    def rows(self, target: Cut) -> list[dict[str, Any]]:
        """A row per target position for a table."""
        columns = zip(target.labels, *(part.tolist() for part in (self.realised, self.others, self.tail)), strict=True)
        return [
            {"target token": label, "on this token": own, "on others": others, "tail": tail, "sum": own + others + tail}
            for label, own, others, tail in columns
        ]


def text_coverage(source: NamedTokenizer, target: NamedTokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Target tokens of texts by alignment rule, as `matching.coverage` counts them; a text that is misspelt counts as `none`."""
    ids = [[side.encode(text) for text in texts] for side in (source, target)]
    found = _match(source.tokens, ids[0], target.tokens, ids[1], [text.encode() for text in texts])
    return coverage(found.rules)


def coverage_rows(pairs: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Tokens by rule of each pair for a table, in percent of its tokens."""
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
