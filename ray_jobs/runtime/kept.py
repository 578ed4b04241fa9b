"""Keeps what the parts of one job share, such as a loaded model, until the last of them has ended."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any


class Kept(ExitStack):
    """At most one thing, made by the first part that needs it and released when the job ends."""

    thing: Any = None

    def once(self, make: Callable[[], AbstractContextManager[Any]]) -> Any:
        """Returns the thing that is kept; the first call makes it."""
        if self.thing is None:
            self.thing = self.enter_context(make())
        return self.thing
