"""The alignment rules: one record each. `profuser.alignment.matching` finds where each applies, `transport` carries it out."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Rule(IntEnum):
    """How a target position got its distribution; the number is what artifacts store."""

    NONE = 0
    """It got none: cross-entropy only."""
    PROJECT = 1
    """A source token starts here and reaches as far as the target token, or farther."""
    CONDITION = 2
    """The position is inside a source token: conditioned on the bytes already consumed."""
    CHAIN = 3
    """The target token reaches beyond the source token: the realised token's mass is a product along the source tokens.
    Where it also begins inside a source token, both this rule and CONDITION are needed."""
    END = 4
    """The target's end of turn, where the source ends its turn too."""


@dataclass(frozen=True)
class RuleRecord:
    """A rule in words and pictures."""

    meaning: str
    hatch: str = ""
    """Pattern in plots (matplotlib's)."""


RECORDS = {
    Rule.PROJECT: RuleRecord("a source token starts here too"),
    Rule.CONDITION: RuleRecord("begins inside a source token", "////"),
    Rule.CHAIN: RuleRecord("spans several source tokens", "...."),
    Rule.END: RuleRecord("both models end their turn"),
    Rule.NONE: RuleRecord("cross-entropy only", "xx"),
}
"""In the order of a table."""
RULES = {rule.name.lower(): record for rule, record in RECORDS.items()}
"""The same by the rule's name in recipes, artifacts and reports."""
CARRYING = tuple(name for name in RULES if name != "none")
"""Names of the rules that carry a distribution."""


@dataclass(frozen=True)
class AlignmentRules:
    """Which rules may carry a distribution; a position whose rule is off gets none."""

    allowed: frozenset[Rule] = frozenset(RECORDS) - {Rule.NONE}

    @classmethod
    def only(cls, names: Iterable[str]) -> "AlignmentRules":
        """Returns the rules that are named, and no other.

        Raises:
            ValueError: a name is none of `CARRYING`.
        """
        return cls(frozenset(Rule[rule_name(name).upper()] for name in names))

    def without(self, name: str) -> "AlignmentRules":
        """Returns the same without one rule."""
        return AlignmentRules(self.allowed - {Rule[rule_name(name).upper()]})


def rule_name(name: str) -> str:
    """Returns the name of a rule that carries a distribution; ValueError where it is none."""
    if name not in CARRYING:
        raise ValueError(f"no alignment rule {name!r}; there are: {', '.join(CARRYING)}")
    return name
