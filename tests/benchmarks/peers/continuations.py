"""Computes the exact distribution of the target's next token, by walking through the source's continuations.

After a history of source tokens, and given the bytes that the target has consumed beyond it, the source defines how its text
continues, and so the target's next token: the first of the target's tokenization of that text. The walk expands continuations, most
probable first, in batches of equal length. A continuation is settled if no target token begins with all of its text: then
its first token is final (for BPE almost surely: a later merge could still move its end). The mass left when the budget
is spent, or too improbable to be followed, is the residual; the exact masses are those of the settled part, normalised.

All spellings of the consumed bytes count, as the source defines them; those that contradict the bytes are ruled out, and so are
those that the target would not split after these bytes, since it has emitted a token that ends there.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from profuser.alignment.first_token import first_tokens
from profuser.alignment.splits import token_begins
from profuser.alignment.token_bytes import Role, TokenBytes
from tests.benchmarks.peers.models import Model, Reading

BATCH, CHILDREN = 16, 256
"""Continuations per pass, and next tokens followed for each."""


class Node(NamedTuple):
    negative_mass: float
    tokens: tuple[int, ...]
    text: bytes


@dataclass
class Found:
    """Masses of the target's next token, and unsettled mass; they sum to the mass of the consumed bytes."""

    masses: dict[int, float] = field(default_factory=dict)
    dropped: float = 0.0
    open_mass: float = 0.0

    @property
    def residual(self) -> float:
        left = self.dropped + self.open_mass
        return left / (left + sum(self.masses.values()))

    def exact(self) -> dict[int, float]:
        total = sum(self.masses.values())
        return {index: mass / total for index, mass in self.masses.items()}


class Walk:
    """Continuations of one source, read with the tokenizer of one target."""

    def __init__(self, source: TokenBytes, target: TokenBytes):
        self.source, self.target = source, target
        self.pieces = [source[index] or b"" for index in range(source.vocab_size)]
        texts = (target[index] or b"" for index in np.flatnonzero(target.lengths).tolist())
        self.begun = {text[:length] for text in texts for length in range(1, len(text))}
        self.fitting: dict[bytes, np.ndarray] = {}

    def __call__(
        self,
        root: Float[np.ndarray, "V"],
        consumed: bytes,
        continued: Callable,
        residual: float,
        budget: int,
        judged: bool = True,
    ) -> Found:
        """Walks from a history.

        Args:
            root: the source's probabilities of the next token.
            consumed: bytes that the text is known to begin with.
            continued: token sequences of equal length to the source's probabilities after each.
            residual: unsettled mass at which to stop.
            budget: number of continuations to expand at most.
            judged: whether to rule out texts that the target would not split after the consumed bytes.
        """
        found, heap = Found(), []
        self._expand(Node(-1.0, (), b""), root, consumed, found, heap, judged)
        while heap and budget > 0 and found.residual > residual:
            batch = _next_batch(heap, min(BATCH, budget))
            budget -= len(batch)
            for node, row in zip(batch, continued([node.tokens for node in batch]), strict=True):
                found.open_mass += node.negative_mass
                self._expand(node, row, consumed, found, heap, judged)
        return found

    def _expand(
        self,
        node: Node,
        row: Float[np.ndarray, "V"],
        consumed: bytes,
        found: Found,
        heap: list[Node],
        judged: bool,
    ) -> None:
        """Settles or queues the tokens that may follow a continuation."""
        mass = row.astype(np.float64) * -node.negative_mass
        due = consumed[len(node.text) :]
        mass = np.where(self._fits(due), mass, 0.0) if due else mass
        best = np.argpartition(-mass, CHILDREN)[:CHILDREN] if len(mass) > CHILDREN else np.arange(len(mass))
        best = best[mass[best] > 0]
        found.dropped += float(mass.sum() - mass[best].sum())
        settled: list[tuple[bytes, float]] = []
        for index, p in zip(best.tolist(), mass[best].tolist(), strict=True):
            text = node.text + self.pieces[index]
            rest = text[len(consumed) :]
            if self.source.roles[index] == Role.END:
                if rest:
                    settled.append((rest, p))
                else:
                    _add(found.masses, self.target.end_ids[0], p)
            elif not self.pieces[index]:
                found.dropped += p
            elif rest and rest not in self.begun:
                settled.append((rest, p))
            else:
                found.open_mass += p
                heapq.heappush(heap, Node(-p, (*node.tokens, index), text))
        if judged and consumed:
            begins = token_begins(self.target, [consumed + rest for rest, _ in settled])
            settled = [each for each, row in zip(settled, begins, strict=True) if row[len(consumed)]]
        for goal, (_, p) in zip(first_tokens(self.target, [rest for rest, _ in settled]), settled, strict=True):
            _add(found.masses, int(goal), p)

    def _fits(self, due: bytes) -> Bool[np.ndarray, "V"]:
        """Returns the tokens that begin with the bytes still due, or that these begin with."""
        if due not in self.fitting:
            self.fitting[due] = np.array([bool(p) and (p.startswith(due) or due.startswith(p)) for p in self.pieces])
        return self.fitting[due]


def _add(masses: dict[int, float], index: int, mass: float) -> None:
    masses[index] = masses.get(index, 0.0) + mass


def _next_batch(heap: list[Node], size: int) -> list[Node]:
    """Returns the most probable nodes of equal length."""
    batch = [heapq.heappop(heap)]
    while heap and len(batch) < size and len(heap[0].tokens) == len(batch[0].tokens):
        batch.append(heapq.heappop(heap))
    return batch


class Continuer:
    """Computes a model's distributions after continuations of an answer's prefix, with one cache of the whole answer."""

    @torch.inference_mode()
    def __init__(self, model: Model, reading: Reading):
        self.model, self.start = model, len(reading.prompt_ids)
        whole = torch.tensor([reading.prompt_ids + reading.ids.tolist()])
        self.cache = model.net(whole, use_cache=True, logits_to_keep=1).past_key_values

    def after(self, num_tokens: int):
        """Returns a function of continuations of equal length after the first `num_tokens` tokens of the answer."""
        return lambda tokens: self._read(self.start + num_tokens, tokens)

    @torch.inference_mode()
    def _read(self, length: int, tokens: Sequence[tuple[int, ...]]) -> Iterator[Float[np.ndarray, "V"]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._layers()):
            keys, values = (each[:, :, :length].expand(len(tokens), -1, -1, -1) for each in (keys, values))
            cache.update(keys, values, layer)
        logits = self.model.net(torch.tensor(tokens), past_key_values=cache, logits_to_keep=1).logits[:, -1]
        yield from logits.softmax(-1).numpy()

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((layer.keys, layer.values) for layer in self.cache.layers)


def distance(ids: Sequence[int], masses: Sequence[float], exact: dict[int, float]) -> float:
    """Returns the total variation of listed masses from exact ones; all of the listed tail counts as misplaced."""
    listed = {index: mass for index, mass in zip(ids, masses, strict=True) if mass > 0}
    differences = sum(abs(listed.get(index, 0.0) - exact.get(index, 0.0)) for index in listed | exact)
    return (differences + max(0.0, 1 - sum(listed.values()))) / 2


def bucket_distance(ids: Sequence[int], masses: Sequence[float], exact: dict[int, float]) -> float:
    """Returns the same over the loss's categories: the listed tokens, and one for all others."""
    listed = {index: mass for index, mass in zip(ids, masses, strict=True) if mass > 0}
    differences = sum(abs(mass - exact.get(index, 0.0)) for index, mass in listed.items())
    tail = 1 - sum(listed.values()) - (1 - sum(exact.get(index, 0.0) for index in listed))
    return (differences + abs(tail)) / 2
