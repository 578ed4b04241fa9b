"""The section of a recipe that says who teaches what, and how distributions reach the target's tokens."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from profuser.config import Config, execution_field
from profuser.recipe.resources import PoolConfig
from profuser.recipe.rewards import VoteConfig
from profuser.signals.rules import CARRYING, rule_name

AVERAGE = "average"
"""Teacher of an example that all sources teach together."""


class SelectConfig(Config):
    """Who teaches what."""

    training_metric: Literal["bits_per_byte", "nats_per_token"] = "bits_per_byte"
    """What Min-CE minimises: comparable across tokenizers, or the paper's."""
    training_teacher: Literal["best", "average"] = "best"
    """Who teaches the ground truth: the source that Min-CE picks, or the mean of the distributions of all that took the row."""
    vote: VoteConfig = VoteConfig()
    exclude_target: bool = False
    """Leave the target itself out of the teachers."""
    incomplete_rows: Literal["keep", "drop"] = "keep"
    """A row that a source refused (too long for its context ...): taught by the others, or left out altogether."""
    alignment_rules: tuple[Annotated[str, AfterValidator(rule_name)], ...] = CARRYING
    """Rules by which distributions reach the target's positions; a position that none fits carries CE only."""
    condition: Literal["exact", "tail"] = "tail"
    """Mass of a candidate that spells exactly the bytes already consumed, where a target position lies inside a source token: to
    the `tail`; or `exact`, over what the source says after that candidate, asked in one more request of the stage `signals` each
    (needs `collect.signals: lazy`)."""
    vocab_fallback: Literal["first_token", "min_edit", "tail"] = "first_token"
    """Where a source token whose bytes are no token of the target's goes: to the `first_token` of the target's tokenization of
    them; to the target's token at the smallest edit distance (FuseLLM's); or to the `tail`, so that only the same bytes count."""
    map_specials: bool = True
    """A source's end of turn goes to the target's; otherwise its mass goes to the tail."""
    pool: PoolConfig = execution_field(PoolConfig())
