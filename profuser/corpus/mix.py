"""Draws the rows of each part of a mix, and names the parts in counts and categories."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profuser.artifacts.schemas import CORPUS
from profuser.recipe.preparing import CorpusConfig

PART = "part"
"""Column of a row's part, in the spool alone."""
PARTS = "parts/"
"""Beginning of a count's name; the part's name follows, and `/rows` or `/left_out`."""


def draw(config: CorpusConfig, row_ids: Iterable[str], sizes: Sequence[int], seed: int) -> np.ndarray:
    """Draws the rows that each part gives: those with the smallest hash of seed, part and id, whatever their order in the file.

    Args:
        config: the recipe's section.
        row_ids: ids of all usable rows, part by part.
        sizes: usable rows of each part.
        seed: another seed gives other rows.

    Returns:
        For each row whether it is used; every row is if there are no parts.
    """
    ids, is_used, begin = iter(row_ids), np.ones(sum(sizes), dtype=bool), 0
    for part, num_rows in zip(config.parts, sizes, strict=False):
        keys = np.fromiter(
            (_key(f"{seed}:{part.name}:{row_id}") for row_id in islice(ids, num_rows)), np.uint64, num_rows
        )
        is_used[begin + np.argsort(keys)[part.num_used(num_rows) :]] = False
        begin += num_rows
    return is_used


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def with_categories(rows: pa.Table, is_mix: bool) -> pa.Table:
    """Returns spooled rows in the corpus schema; in a mix a row without a category gets the name of its part."""
    if is_mix:
        filled = pc.call_function("coalesce", [rows["category"], rows[PART]])
        rows = rows.set_column(rows.schema.get_field_index("category"), CORPUS.field("category"), filled)
    return rows.drop_columns([PART])


def part_counts(used: Mapping[str, int], left_out: Mapping[str, int]) -> dict[str, float]:
    """Returns the counts of each part's rows, and of those that its share or limit leaves out."""
    out: dict[str, float] = {f"{PARTS}{name}/rows": num for name, num in used.items()}
    return out | {f"{PARTS}{name}/left_out": num for name, num in left_out.items() if num}


def parts_line(counts: Mapping[str, float]) -> str:
    """Names the parts of a mix with their rows; empty if there are none."""
    said = []
    for name in (key.removeprefix(PARTS).removesuffix("/rows") for key in counts if _counts_rows(key)):
        left_out = counts.get(f"{PARTS}{name}/left_out")
        more = f" ({left_out:,.0f} left out by its share or max_rows)" if left_out else ""
        said.append(f"{name} {counts[f'{PARTS}{name}/rows']:,.0f} rows{more}")
    return f"parts: {', '.join(said)}" if said else ""


def _counts_rows(key: str) -> bool:
    return key.startswith(PARTS) and key.endswith("/rows")
