"""The recipe section of selection: which source teaches what, and how distributions are carried to the target's tokens."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from profuser.config import Config, execution_field, later_field
from profuser.recipe.resources import PoolConfig
from profuser.recipe.rewards import VoteConfig
from profuser.signals.rules import DISTRIBUTION_RULES, rule_name

AVERAGE = "average"
"""Teacher name of an example that all sources teach together."""


class PreferenceConfig(Config):
    """Pairs of answers for preference mode: to each row, the best answer and one that lost to it. An answer that was cut, is blank
    or was not judged is in no pair, and an answer that every verifier rejects is never the better one."""

    within: Literal["source", "row"] = "source"
    """Answers that make a pair: those of the best answer's source (the choice of FuseChat-3.0, arXiv 2503.04222: the two differ in
    quality and little in style; needs `collect.samples_per_source` above 1), or those of all sources."""
    margin: float = Field(default=0.0, ge=0)
    """Lead of the better answer that a pair needs more than, in standard deviations: the mean standardised reward, weighted like
    the votes."""
    length_ratio: float | None = Field(default=None, ge=1)
    """Largest ratio of the lengths of a pair's answers, in bytes; by default any. The worst answer within it is taken."""


class OnPolicyConfig(Config):
    """The target's own answers, each with the distributions of the row's teacher, for on-policy mode. The target must be a source,
    and `collect.signals` lazy: the teachers read these answers in the stage `signals`."""

    teacher: Literal["training", "inference", "average"] = "training"
    """The row's teacher: the source with the lowest cross-entropy on the ground truth, or the one whose answer has the most votes.
    If that is the target itself, the row has no such example. Or the mean distribution of all other sources (`average`)."""


class SelectConfig(Config):
    """Selection of teachers and transport of their distributions."""

    training_metric: Literal["bits_per_byte", "nats_per_token"] = "bits_per_byte"
    """Metric that Min-CE minimises: comparable across tokenizers, or the paper's."""
    training_teacher: Literal["best", "average"] = "best"
    """Teacher of the ground truth: the source that Min-CE picks, or the mean distribution of all sources that accepted the row."""
    vote: VoteConfig = VoteConfig()
    exclude_target: bool = False
    """Whether the target itself is excluded from the teachers."""
    incomplete_rows: Literal["keep", "drop"] = "keep"
    """Treatment of a row that a source refused (too long for its context ...): taught by the others, or dropped."""
    alignment_rules: tuple[Annotated[str, AfterValidator(rule_name)], ...] = DISTRIBUTION_RULES
    """Rules that carry distributions to the target's positions; a position that no rule fits has CE only."""
    condition: Literal["exact", "tail"] = later_field("tail")
    """Mass of a candidate that spells exactly the bytes already consumed, at a target position inside a source token: moved to the
    `tail`; or spread over the source's distribution after that candidate (`exact`), one more request each in the stage `signals`
    (needs `collect.signals: lazy`)."""
    vocab_fallback: Literal["first_token", "min_edit", "tail"] = "first_token"
    """Destination of a source token whose bytes are not a token of the target: the `first_token` of the target's tokenization of
    them; the target's token at the smallest edit distance (FuseLLM's); or the `tail`, so that only equal bytes count."""
    preference: PreferenceConfig | None = later_field(None)
    """Pairs of a better and a worse answer, for a schedule with `preference` (not in the paper); by default none are made."""
    on_policy: OnPolicyConfig | None = later_field(None)
    """The target's own answers under the row's teacher, for a schedule with `on_policy` (not in the paper); by default none."""
    map_specials: bool = True
    """Whether a source's end of turn maps to the target's; otherwise its mass goes to the tail."""
    pool: PoolConfig = execution_field(PoolConfig())
