"""Tests. Loads the runtime type checker first: pytest's jaxtyping hook looks it up here by name."""

from contextlib import suppress

# Not installed on a bare machine that only runs a benchmark.
with suppress(ModuleNotFoundError):
    from tests import typechecker

__all__ = ["typechecker"]
