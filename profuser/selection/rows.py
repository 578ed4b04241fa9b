"""Reads what `select` was given and chose, for every corpus row, from finished artifacts.

Legend: N corpus rows, M sources, R rewards, C answers of all sources to a row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from profuser.alignment.matching import coverage
from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import MODES, PAIR
from profuser.engines.signal_tables import candidate_answers
from profuser.recipe.selecting import AVERAGE
from profuser.rewards.voting import RewardScale, standardised
from profuser.signals.codec import from_list_column


@dataclass(frozen=True)
class SelectionRows:
    """Inputs and choices of `select`, for every corpus row."""

    teachers: Int[np.ndarray, "N 2"]
    """Source chosen in training mode and in inference mode; -1 where none was, or where all teach together."""
    surprise: Float[np.ndarray, "N M"]
    """Bits per byte (or nats per token, by the recipe) of the ground truth under each source; NaN where it refused the row."""
    answers: Sequence[Sequence[str | None]]
    """Answer of each source, `[N][M]`; None where it has none."""
    scores: Float[np.ndarray, "N M R"]
    """Rewards of the answers; NaN where there is none."""
    taught: Float[np.ndarray, "N R"]
    """Rewards of the answer that teaches; NaN where none does, or where the reward does not judge the row."""
    categories: Sequence[str | None] = ()
    """Category of each row, None where it has none; empty if no row has one."""

    def part(self, mask: Bool[np.ndarray, "N"]) -> "SelectionRows":
        """Returns the rows that a mask names."""
        places = np.flatnonzero(mask)
        answers, categories = ([every[i] for i in places] if every else [] for every in (self.answers, self.categories))
        return SelectionRows(
            self.teachers[places], self.surprise[places], answers, self.scores[places], self.taught[places], categories
        )

    def by_category(self) -> dict[str, "SelectionRows"]:
        """Returns the rows of each category, in alphabetical order."""
        known = sorted({category for category in self.categories if category is not None})
        return {name: self.part(np.array([own == name for own in self.categories])) for name in known}


def read_rows(
    selected: Artifact,
    collected: Sequence[Artifact],
    rewards: Sequence[Artifact],
    names: Sequence[str],
    categories: Mapping[str, str | None] | None = None,
) -> SelectionRows:
    """Reads finished artifacts; from the large ones, only the columns that are needed.

    Args:
        selected: training examples.
        collected: artifact of each source, in order.
        rewards: artifact of each reward, in order.
        names: names of the sources.
        categories: category of each row by its id.
    """
    row_ids = [row_id for table in rewards[0].tables(["row_id"]) for row_id in table["row_id"].to_pylist()]
    place = {row_id: index for index, row_id in enumerate(row_ids)}
    teachers = np.full((len(row_ids), len(MODES)), -1)
    surprise = np.full((len(row_ids), len(names)), np.nan)
    taught = np.full(len(row_ids), -1)
    for table in selected.tables(["row_id", "mode", "teacher", "sample", "advantages"]):
        for example in table.to_pylist():
            if example["mode"] not in MODES:
                continue
            row = place[example["row_id"]]
            if example["teacher"] != AVERAGE:
                teachers[row, MODES.index(example["mode"])] = names.index(example["teacher"])
            if example["mode"] == "training":
                surprise[row] = example["advantages"]
            else:
                num_samples = len(example["advantages"]) // len(names)
                taught[row] = names.index(example["teacher"]) * num_samples + example["sample"]
    tables = [pa.concat_tables(source.tables(["answers"])) for source in collected]
    scores = [
        np.array([row for table in reward.tables(["scores"]) for row in table["scores"].to_pylist()], dtype=np.float64)
        for reward in rewards
    ]
    every = np.stack(scores, axis=2)
    own = np.where(taught[:, None] >= 0, every[np.arange(len(every)), taught], np.nan)
    named = [categories.get(row_id) for row_id in row_ids] if categories else []
    return SelectionRows(teachers, surprise, *_best_samples(tables, every), own, named)


def read_categories(corpus: Artifact) -> dict[str, str | None]:
    """Returns the category of each corpus row by its id."""
    tables = corpus.tables(["row_id", "category"])
    return {
        key: category
        for table in tables
        for key, category in zip(table["row_id"].to_pylist(), table["category"].to_pylist(), strict=True)
    }


def wins_by_category(selected: Artifact) -> dict[str, Counter[tuple[str, str]]]:
    """Returns how many examples each source teaches in each category: `{category: {(mode, teacher): number}}`."""
    out: dict[str, Counter[tuple[str, str]]] = {}
    for table in selected.tables(["category", "mode", "teacher"]):
        categories, modes, teachers = (table[name].to_pylist() for name in ("category", "mode", "teacher"))
        for category, mode, teacher in zip(categories, modes, teachers, strict=True):
            if category is not None and mode in MODES:
                out.setdefault(category, Counter())[mode, teacher] += 1
    return {category: out[category] for category in sorted(out)}


def coverage_by_category(selected: Artifact) -> dict[str, dict[str, int]]:
    """Returns the number of response tokens by alignment rule, over the examples of each category that have a teacher."""
    out: dict[str, Counter[str]] = {}
    for table in selected.tables(["category", "mode", "rules"]):
        table = table.filter(pc.field("category").is_valid() & ~pc.field("mode").isin(list(PAIR)))
        for name in table["category"].unique().to_pylist():
            rules = from_list_column(table.filter(pc.field("category") == name)["rules"])
            out.setdefault(name, Counter()).update(coverage(rules.values))
    return {category: dict(out[category]) for category in sorted(out)}


def _best_samples(
    tables: Sequence[pa.Table], scores: Float[np.ndarray, "N C R"]
) -> tuple[list[list[str | None]], Float[np.ndarray, "N M R"]]:
    """Returns each source's answer with the highest mean standardised reward to each row, and the rewards of these answers."""
    num_samples = scores.shape[1] // len(tables)
    answers = candidate_answers(tables, num_samples)
    if num_samples == 1:
        return answers, scores
    scales = [RewardScale.of(scores[:, :, judge]) for judge in range(scores.shape[2])]
    mean = np.nan_to_num(standardised(scores, scales).mean(axis=2), nan=-np.inf)
    best = mean.reshape(len(scores), len(tables), num_samples).argmax(axis=2) + np.arange(len(tables)) * num_samples
    picked = [[row[place] for place in places] for row, places in zip(answers, best.tolist(), strict=True)]
    return picked, np.take_along_axis(scores, best[:, :, None], axis=1)
