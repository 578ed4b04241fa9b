"""The tests. The runtime type checker is loaded first: pytest's jaxtyping hook looks it up here by name."""

from contextlib import suppress

# A bare machine that only runs a benchmark has none.
with suppress(ModuleNotFoundError):
    from tests import typechecker

__all__ = ["typechecker"]
