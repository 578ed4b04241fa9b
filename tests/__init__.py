"""The tests. The runtime type checker is loaded first: pytest's jaxtyping hook looks it up here by name."""

from tests import typechecker

__all__ = ["typechecker"]
