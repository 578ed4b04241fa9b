"""The interface of every reward, whether model or verifier."""

from collections.abc import Mapping, Sequence
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
