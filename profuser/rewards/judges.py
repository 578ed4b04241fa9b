"""The interface of every reward, model or verifier."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Judge(Protocol):
    """Scores answers. One lives in each actor."""

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """Returns rewards of answers, one to each row of the corpus (a row may come more than once); higher is better."""
        ...
