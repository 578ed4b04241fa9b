"""Indexes and reads the training examples of the select artifact.

Legend: R corpus rows that have an example, K top-k, T response tokens. Columns `[R, parts]` are by mode, and answer of a pair, in
the order of `PARTS`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int, Integer

from profuser.artifacts.schemas import MODES, PARTS
from profuser.errors import ArtifactError
from profuser.selection.advantage import margins
from profuser.signals.codec import TopK, from_columns, from_list_column
from profuser.training.preference import in_pair

LIGHT_COLUMNS = ("row_id", "mode", "teacher", "advantages", "prompt_ids", "response_ids")
"""Columns that the index reads."""


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """One mode of one corpus row, or one answer of its pair, in the target's tokens, cut to `max_tokens`."""

    row_id: str
    mode: int
    """Index into `PARTS`."""
    teacher: str
    prompt_ids: Integer[np.ndarray, "P"]
    response_ids: Integer[np.ndarray, "T"]
    topk: TopK
    response_bytes: float
    """UTF-8 bytes of the response; for a truncated one, the proportional share."""
    weight: float = 1.0
    """Weight of the example within its mode."""

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, eq=False)
class ExampleIndex:
    """Location and length of every row's examples: 68 bytes per row, for planning without reading them."""

    shards: Int[np.ndarray, "R"]
    ordinals: Int[np.ndarray, "R"]
    """Index of the row among its shard's rows, in order of first occurrence."""
    tokens: Int[np.ndarray, "R parts"]
    """Prompt and response tokens; 0 if the row has no such example."""
    responses: Int[np.ndarray, "R parts"]
    """Response tokens only."""
    weights: Float[np.ndarray, "R parts"]
    """Weight of each example within its mode, 0 to 1."""
    num_cut: int
    """Examples that were longer than `max_tokens`."""
    num_left_out: int
    """Examples whose prompt leaves no room for a response."""
    teachers: dict[str, int]
    """Examples by teacher."""
    num_long_pairs: int = 0
    """Pairs that are left out because both answers, each with the prompt, are longer than `max_tokens` together."""

    @classmethod
    def build(
        cls,
        shards: Iterable[tuple[int, pa.Table]],
        max_tokens: int,
        weighting: Literal["none", "margin"] = "none",
    ) -> "ExampleIndex":
        """Reads the light columns of all shards, given as number and table; other arguments as in `FuseConfig`.

        Raises:
            ArtifactError: there are no examples.
        """
        parts = [_index_shard(number, table, max_tokens, weighting) for number, table in shards]
        parts = [part for part in parts if len(part.shards)]
        if not parts:
            raise ArtifactError("the select artifact has no training examples: every row was refused or skipped")
        teachers: dict[str, int] = {}
        for part in parts:
            teachers = {name: teachers.get(name, 0) + part.teachers.get(name, 0) for name in teachers | part.teachers}
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("shards", "ordinals", "tokens", "responses", "weights")
        }
        cut, left_out, long_pairs = (
            sum(getattr(part, name) for part in parts) for name in ("num_cut", "num_left_out", "num_long_pairs")
        )
        return cls(**arrays, num_cut=cut, num_left_out=left_out, num_long_pairs=long_pairs, teachers=teachers)

    def cut_words(self, max_tokens: int) -> str:
        """States which examples are not trained whole because of `max_tokens`; empty if all are."""
        parts = {
            "examples cut at their end": self.num_cut,
            "examples left out, whose prompts leave no room": self.num_left_out,
            "pairs left out, whose answers are too long together": self.num_long_pairs,
        }
        found = [f"{number:,} {what}" for what, number in parts.items() if number]
        return f"{', '.join(found)}, at fuse.max_tokens of {max_tokens:,}" if found else ""

    def split(self, num_validation: int, seed: int) -> tuple[Int[np.ndarray, "R1"], Int[np.ndarray, "R2"]]:
        """Returns the training rows and the validation rows (the requested number, but at most a tenth), both ascending."""
        num = min(num_validation, len(self.shards) // 10)
        validation = np.random.default_rng([seed, len(self.shards)]).permutation(len(self.shards))[:num]
        return np.setdiff1d(np.arange(len(self.shards)), validation), np.sort(validation)


def _index_shard(number: int, table: pa.Table, max_tokens: int, weighting: str) -> ExampleIndex:
    ids = table["row_id"].combine_chunks().dictionary_encode()
    ordinals = ids.indices.to_numpy(zero_copy_only=False)
    mode = np.array([PARTS.index(name) for name in table["mode"].to_pylist()], dtype=np.int64)
    prompt, response = (
        pc.list_value_length(table[name]).to_numpy().astype(np.int32)  # type: ignore[attr-defined]
        for name in ("prompt_ids", "response_ids")
    )
    kept, is_pair = np.clip(max_tokens - prompt, 0, response), in_pair(mode)
    tokens, responses = (np.zeros((len(ids.dictionary), len(PARTS)), dtype=np.int32) for _ in range(2))
    # A pair's answers are trained together, whole or not at all.
    pair_tokens = np.zeros(len(ids.dictionary), dtype=np.int64)
    np.add.at(pair_tokens, ordinals[is_pair], (prompt + response)[is_pair])
    kept = np.where(is_pair, np.where(pair_tokens[ordinals] <= max_tokens, response, 0), kept)
    tokens[ordinals, mode] = np.where(kept > 0, prompt + kept, 0)
    responses[ordinals, mode] = kept
    weights = np.ones(tokens.shape, dtype=np.float32)
    if weighting == "margin":
        weights[ordinals, mode] = _margins(table["advantages"], mode)
    present = np.flatnonzero(tokens.any(axis=1))
    names = [name for name, left in zip(table["teacher"].to_pylist(), kept * ~is_pair, strict=True) if left]
    return ExampleIndex(
        shards=np.full(len(present), number, dtype=np.int32),
        ordinals=present.astype(np.int32),
        tokens=tokens[present],
        responses=responses[present],
        weights=weights[present],
        num_cut=int(((kept > 0) & (kept < response)).sum()),
        num_left_out=int(((kept == 0) & ~is_pair).sum()),
        num_long_pairs=int((pair_tokens > max_tokens).sum()),
        teachers={name: names.count(name) for name in sorted(set(names))},
    )


def _margins(advantages: pa.ChunkedArray, mode: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    out = (mode >= len(MODES)).astype(np.float64)
    for index, name in enumerate(MODES):
        own = np.flatnonzero(mode == index)
        if len(own):
            rows = np.array(advantages.take(pa.array(own)).to_pylist(), dtype=np.float64)
            out[own] = margins(rows, name)
    return out


@dataclass(frozen=True)
class ExampleReader:
    """Reads examples shard by shard."""

    read_shard: Callable[[int], pa.Table]
    """Returns a shard of the select artifact by its number."""
    top_k: int
    vocab_size: int
    """Width of the target's logits."""
    max_tokens: int

    def read(
        self, index: ExampleIndex, wanted: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], TrainingExample]]:
        """Yields the requested examples, each given as (row of the index, mode), in shard order.

        Raises:
            ArtifactError: a shard differs from the one that was indexed, or has another top-k.
        """
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for row, mode in wanted:
            by_shard.setdefault(int(index.shards[row]), []).append((row, mode))
        for shard, keys in sorted(by_shard.items()):
            places, read = self._open(shard)
            for row, mode in keys:
                place = places.get((int(index.ordinals[row]), mode))
                if place is None:
                    raise ArtifactError(f"select shard {shard} has changed since training began; run again")
                yield (row, mode), read(place, float(index.weights[row, mode]))

    def _open(self, shard: int) -> tuple[dict[tuple[int, int], int], Callable[[int, float], TrainingExample]]:
        """Returns the positions of a shard's examples by (ordinal, mode), and a function that reads the one at a position."""
        table = self.read_shard(shard)
        ordinals = table["row_id"].combine_chunks().dictionary_encode().indices.to_pylist()
        modes = [PARTS.index(name) for name in table["mode"].to_pylist()]
        row_ids, teachers, num_bytes = (table[name].to_pylist() for name in ("row_id", "teacher", "response_bytes"))
        topk = from_columns(table, "topk", self.top_k, self.vocab_size)
        prompts, responses = (from_list_column(table[name]) for name in ("prompt_ids", "response_ids"))

        def read(place: int, weight: float) -> TrainingExample:
            prompt, response = prompts.row(place), responses.row(place)
            num = min(len(response), self.max_tokens - len(prompt))
            return TrainingExample(
                row_ids[place],
                modes[place],
                teachers[place],
                prompt,
                response[:num],
                topk.row(place)[:num],
                num_bytes[place] * num / len(response),
                weight,
            )

        return {key: place for place, key in enumerate(zip(ordinals, modes, strict=True))}, read
