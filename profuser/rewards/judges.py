"""The interface of every reward, whether model or verifier."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from profuser.engines.loop import EngineLoop
    from profuser.rewards.verdicts import VerdictRow


@runtime_checkable
class Judge(Protocol):
    """Scores answers. Each actor has one."""

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """Returns the rewards of answers, one per corpus row (a row may occur several times).

        Higher is better; NaN for a row that it does not judge, or whose conversation its chat template does not accept.
        """
        ...


@runtime_checkable
class CountsAnswers(Protocol):
    """A judge that reports its progress within a call of `score`."""

    answered: Callable[[int], None]
    """Called with the number of answers that were just scored."""


class Verdict(NamedTuple):
    """A reward with the reason for what is missing from the full one."""

    reward: float
    reason: str | None = None
    """A few words joined by underscores that follow a number in the stage's line: `3 out of time`."""


@runtime_checkable
class GivesReasons(Protocol):
    """A judge that gives reasons for its rewards."""

    reasons: Counter[str]
    """Answers of the last call of `score` without the full reward, by reason."""


@runtime_checkable
class RunsEngine(Protocol):
    """A judge that may run an engine, whose steps can be observed."""

    loop: "EngineLoop | None"
    """The engine's loop; None without one."""


@runtime_checkable
class KeepsVerdicts(Protocol):
    """A judge that asks a language model, and keeps its questions and replies."""

    verdicts: Sequence["VerdictRow"]
    """Those of the last call of `score`, by indices of its answers."""
    counts: Mapping[str, float]
    """Counts of the last call of `score`."""
