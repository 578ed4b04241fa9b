"""Pairs of a better and a worse answer to the same prompt, from the votes, for preference mode.

Not in the paper; after FuseChat-3.0 (arXiv 2503.04222), which takes both answers from one source.

Legend: M answers to a row, source by source; R rewards.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from profuser.recipe.selecting import PreferenceConfig


def choose_pair(
    answers: Sequence[str | None],
    votes: Float[np.ndarray, "M"],
    means: Float[np.ndarray, "M"],
    rejected: Bool[np.ndarray, "M"],
    num_samples: int,
    config: PreferenceConfig,
) -> tuple[int, int] | None:
    """Returns the places of the better and the worse answer of a row, or None if no two answers make a pair.

    The better one has the most votes, of these the highest mean reward; the worse one has the lowest mean reward of those that
    differ from it in text. Ties go to the first.

    Args:
        answers: the answers; None for one that may not be in a pair.
        votes: sum of the weights of the votes for each answer.
        means: mean standardised reward of each answer (`mean_rewards`); NaN for one that was not judged.
        rejected: answers that every verifier rejects.
        num_samples: answers per source.
        config: which answers make a pair, and the lead that they need.
    """
    usable = [place for place, text in enumerate(answers) if text and text.strip() and not np.isnan(means[place])]
    accepted = [place for place in usable if not rejected[place]]
    if not accepted:
        return None
    better = max(accepted, key=lambda place: (votes[place], means[place]))
    worse = [place for place in usable if _fits(answers[better] or "", answers[place] or "", config)]
    if config.within == "source":
        worse = [place for place in worse if place // num_samples == better // num_samples]
    last = min(worse, key=lambda place: means[place], default=None)
    return (better, last) if last is not None and means[better] - means[last] > config.margin else None


def mean_rewards(standard: Float[np.ndarray, "M R"], weights: Float[np.ndarray, "R"]) -> Float[np.ndarray, "M"]:
    """Returns the mean of each answer's standardised rewards, weighted like the votes; NaN for one that none of weight judged."""
    weight = np.where(np.isnan(standard), 0.0, weights)
    total = weight.sum(axis=1)
    return np.divide(
        (np.nan_to_num(standard) * weight).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
    )


def _fits(better: str, worse: str, config: PreferenceConfig) -> bool:
    """Returns whether two answers differ, and their lengths are close enough."""
    short, long = sorted(len(text.encode()) for text in (better, worse))
    return better != worse and (config.length_ratio is None or long <= config.length_ratio * short)
