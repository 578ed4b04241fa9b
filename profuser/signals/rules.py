"""Defines the alignment rules, one record each. `profuser.alignment.matching` finds where each applies, `transport` applies it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Rule(IntEnum):
    """Rule that gave a target position its distribution; artifacts store the number."""

    NONE = 0
    """No distribution: cross-entropy only."""
    PROJECT = 1
    """A source token starts here and ends with the target token or later."""
    CONDITION = 2
    """The position is inside a source token: conditioned on the bytes already consumed."""
    CHAIN = 3
    """The target token ends after the source token: the mass of the realised token (the one in the response) is a product
    along the source tokens. If the target token also begins inside a source token, CONDITION must be allowed too."""
    END = 4
    """The target's end of turn, where the source ends its turn too."""


@dataclass(frozen=True)
class RuleRecord:
    """Description and plot style of a rule."""

    meaning: str
    hatch: str = ""
    """Hatch pattern in plots (matplotlib)."""


RECORDS = {
    Rule.PROJECT: RuleRecord("a source token starts here too"),
    Rule.CONDITION: RuleRecord("begins inside a source token", "////"),
    Rule.CHAIN: RuleRecord("spans several source tokens", "...."),
    Rule.END: RuleRecord("both models end their turn"),
    Rule.NONE: RuleRecord("cross-entropy only", "xx"),
}
"""Records of all rules, in display order."""
RULES = {rule.name.lower(): record for rule, record in RECORDS.items()}
"""Records by the rule's name in recipes, artifacts and reports."""
DISTRIBUTION_RULES = tuple(name for name in RULES if name != "none")
"""Names of the rules that carry a distribution."""


@dataclass(frozen=True)
class AlignmentRules:
    """Rules that may carry a distribution; a position whose rule is off gets none."""

    allowed: frozenset[Rule] = frozenset(RECORDS) - {Rule.NONE}

    @classmethod
    def only(cls, names: Iterable[str]) -> "AlignmentRules":
        """Returns exactly the named rules.

        Raises:
            ValueError: a name is not in `DISTRIBUTION_RULES`.
        """
        return cls(frozenset(Rule[rule_name(name).upper()] for name in names))

    def without(self, name: str) -> "AlignmentRules":
        """Returns these rules without the named one."""
        return AlignmentRules(self.allowed - {Rule[rule_name(name).upper()]})


def rule_name(name: str) -> str:
    """Returns the name if a rule of that name carries a distribution; otherwise raises ValueError."""
    if name not in DISTRIBUTION_RULES:
        raise ValueError(f"unknown alignment rule {name!r}; allowed: {', '.join(DISTRIBUTION_RULES)}")
    return name
