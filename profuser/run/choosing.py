"""Builds a run's teacher chooser, shared by `signals` and `select`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from profuser.alignment.token_bytes import TokenBytes
from profuser.artifacts.artifact import Artifact
from profuser.recipe.models import Recipe
from profuser.rewards.voting import RewardScale
from profuser.selection.teachers import Chooser


def make_chooser(recipe: Recipe, tokens: Sequence[TokenBytes], scales: Sequence[RewardScale]) -> Chooser:
    """Returns the chooser that picks the teacher of each row."""
    return Chooser(
        names=[source.name for source in recipe.sources],
        teachers=[teacher.name for teacher in recipe.teachers],
        tokens=tokens,
        config=recipe.select,
        scales=scales,
        weights=[reward.weight for reward in recipe.rewards],
        thresholds=[reward.rejects_up_to for reward in recipe.rewards],
        num_samples=recipe.collect.samples_per_source,
        target=next((place for place, source in enumerate(recipe.sources) if recipe.is_target(source)), None),
        seed=recipe.seed,
    )


def reward_scales(rewards: list[Artifact]) -> list[RewardScale]:
    """Returns the mean and standard deviation of each reward over all answers of the run."""
    return [RewardScale.over(map(_scores, artifact.tables(["scores"]))) for artifact in rewards]


def _scores(table: pa.Table) -> np.ndarray:
    return table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
