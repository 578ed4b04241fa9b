"""Values that several sections of a recipe hold: names and patterns."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _valid_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups < 1:
        raise ValueError("the pattern needs a group in parentheses around the answer")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
Pattern = Annotated[str, AfterValidator(_valid_pattern)]
"""A regular expression that compiles and has a group."""
