"""The interface of every reward, whether model or verifier."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


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
